"""Names that a peer may choose: plain words that are safe in logs, file names and pages."""

from __future__ import annotations

import re

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_plain(name: str) -> bool:
    """Whether a text is 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit."""
    return _PLAIN.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raise Refused unless a client may have this name."""
    if not is_plain(name):
        raise Refused(
            pb.BAD_NAME,
            "a client name has 1 to 64 letters, digits, '.', '_' or '-' and starts with a letter "
            "or digit",
        )
