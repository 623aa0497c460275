"""What this machine is called in a run, and where its state is kept."""

from __future__ import annotations

import os
import platform
import re
import secrets
from pathlib import Path

from featherfed.compression.files import write_whole
from featherfed.edge_client.credentials import Credentials
from featherfed.edge_client.errors import ClientError


def device_name(given: str | None, credentials: Credentials | None) -> str:
    """Return the name to take part with: the credentials' own, if there are some.

    Raises ClientError if another one is given.
    """
    proven = None if credentials is None else credentials.name
    if given and proven and given != proven:
        raise ClientError(
            f"the credentials belong to {proven!r}, not {given!r}; leave out --name, or use the "
            "credentials of that device"
        )
    return given or proven or default_name(state_home())


def default_name(home: Path) -> str:
    """Return this machine's name and a mark of its own: every fresh Pi is called raspberrypi."""
    path = home / "name"
    if not path.is_file():
        machine = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node()).strip("-._")[:48] or "client"
        home.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{machine}-{secrets.token_hex(3)}")
    return path.read_text("utf-8").strip()


def state_home() -> Path:
    """Return the folder of all state of this user's clients."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "featherfed"
