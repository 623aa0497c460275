"""This device's identity in a run: its name, and the folder of its state."""

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
    """Return the client's name: the credentials', the given one, or this machine's default.

    Raises ClientError if the given name is not that of the credentials.
    """
    certified = None if credentials is None else credentials.name
    if given and certified and given != certified:
        raise ClientError(
            f"the credentials belong to {certified!r}, not {given!r}; leave out --name, or use the "
            "credentials of that device"
        )
    return given or certified or default_name(state_home())


def default_name(home: Path) -> str:
    """Return the host name with a random suffix, kept in `home`: every new Pi is raspberrypi."""
    path = home / "name"
    if not path.is_file():
        machine = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node()).strip("-._")[:48] or "client"
        home.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{machine}-{secrets.token_hex(3)}")
    return path.read_text("utf-8").strip()


def state_home() -> Path:
    """Return the folder with the state of all clients of this user."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "featherfed"
