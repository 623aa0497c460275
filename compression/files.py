"""Files that are replaced whole or not at all, and locks that die with their process.

Here because every part writes files and this folder is the one that all of them may import; needs
the standard library alone.
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
def replacing(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yield a file, readable too, that takes the place of `path` when the block ends well.

    It is on disk then, name included. However the process dies, there is the old file or the new
    one. A killed process leaves a scratch file that the next one removes. `mode` is as of os.open.
    Raises OSError.
    """
    scratch = scratch_of(path)
    try:
        scratch.unlink(missing_ok=True)  # it may have another mode
        with open(scratch, "x+b", opener=partial(os.open, mode=mode)) as file:
            yield file
        put_in_place(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Replace a file by `data`, texts as UTF-8; see `replacing`."""
    with replacing(path, mode) as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def scratch_of(path: Path) -> Path:
    """Return where a file is written before it takes the place of `path`; the suffix is the same.

    For what writes to paths only: follow it by `put_in_place`.
    """
    return path.with_name(f".new-{path.name}")


def put_in_place(scratch: Path, path: Path) -> None:
    """Make a written file the one at `path`, on disk when this returns; raises OSError."""
    with scratch.open("r+b") as file:
        os.fsync(file.fileno())
    scratch.replace(path)
    # The new name must not come back as the old one after a loss of power.
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path) -> IO[bytes]:
    """Return an open file that one process at a time can have; its end lets go, however it ends.

    Raises BlockingIOError if another has it, OSError if it cannot be written.
    """
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
