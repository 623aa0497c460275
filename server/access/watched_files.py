"""Values read from files that may change while the server runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class WatchedFiles(Generic[T]):
    """Holds a value read from files, and reads it again once one of them has changed."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Call `read`, which reads the files at `paths`; raise what it raises."""
        self._paths = paths
        self._read = read
        self._seen = self._signature()
        self._value = read()

    def get(self) -> T:
        """Return the value; raise what `read` raises as long as the changed files are unusable."""
        signature = self._signature()  # before reading: what changes meanwhile is read again
        if signature != self._seen:
            self._value = self._read()
            self._seen = signature
        return self._value

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [_identity(path) for path in self._paths]


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return time, size and inode of a file, None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
