"""Which names clients may have."""

from __future__ import annotations

import re

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Refuse names that are no plain, short words: they stand in logs, files and pages."""
    if not _NAME.fullmatch(name):
        raise Refused(
            pb.BAD_NAME,
            "a client name has 1 to 64 letters, digits, '.', '_' or '-' and starts with a letter "
            "or digit",
        )
