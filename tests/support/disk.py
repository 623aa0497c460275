"""Full disks and damaged files."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk up to `leave` bytes; return the file that takes the room."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - leave))
    return ballast


def damage(path: Path, *, at: float, length: int = 2000) -> None:
    """Overwrite a part of a file, as a torn write does."""
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * at))
        file.write(random.Random(0).randbytes(length))
