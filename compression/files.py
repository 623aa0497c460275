"""Files that are replaced whole or not at all, and locks that die with their process.

It stands in this folder because all parts may import it. Needs the standard library alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, mode: int = 0o666, *, sync_name: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file, open for writing and reading, that replaces `path` if no exception is raised.

    The file and its name are then synced to disk. If the process is killed, `path` is the old file
    or the new one, whole; a scratch file that remains is removed by the next call for `path`.
    `mode`: permissions, as in os.open. `sync_name`: False where the old file, whole, may come back
    after a loss of power until the names in its folder are synced (`sync_names`). Raises OSError.
    """
    scratch = scratch_of(path)
    try:
        scratch.unlink(missing_ok=True)  # it may have another mode
        with open(scratch, "x+b", opener=partial(os.open, mode=mode)) as file:
            yield file
        if sync_name:
            put_in_place(scratch, path)
        else:
            _replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Replace a file by `data`, texts as UTF-8; see `replacing`."""
    with replacing(path, mode) as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def scratch_of(path: Path) -> Path:
    """Return the scratch file that takes the place of `path` later; the suffix is the same.

    For libraries that write to a path only; call `put_in_place` when they have.
    """
    return path.with_name(f".new-{path.name}")


def put_in_place(scratch: Path, path: Path) -> None:
    """Make a written file the one at `path`, on disk when this returns; raises OSError."""
    _replace(scratch, path)
    sync_names(path.parent)  # the new name must not come back as the old one after a loss of power


def _replace(scratch: Path, path: Path) -> None:
    with scratch.open("r+b") as file:
        os.fsync(file.fileno())
    scratch.replace(path)


def sync_names(folder: Path) -> None:
    """Sync the names of a folder's files to disk: those of new, replaced and deleted ones."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path) -> IO[bytes]:
    """Lock the file at `path` and return it; closing it or the end of the process unlocks it.

    Raises BlockingIOError if another process holds the lock, OSError if it cannot be written.
    """
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
