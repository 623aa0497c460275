"""A client's simulated disk: what of its files survives a loss of power, and disks that are full.

The files are real ones; what was synced of them is remembered. After a loss of power the names are
those of the last sync or of a later moment, and content that was not synced may be torn.
"""

from __future__ import annotations

import errno
import io
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featherfed.simulator.scheduler import Scheduler


class ClientDisk:
    """One client's state directory."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder = folder
        self.full = False
        self._draw = draw
        self._synced: dict[int, bytes] = {}
        """Inode -> content that was synced."""
        self._names: list[dict[str, int]] = [{}]
        """Name -> inode: as the folder was synced, and after every change since."""
        folder.mkdir(parents=True, exist_ok=True)

    def sync(self, path: Path) -> None:
        """Remember that a file's content, or the names in the folder, are on disk now."""
        if path == self.folder:
            self._names = [self._names_now()]
            self._synced = {i: c for i, c in self._synced.items() if i in self._names[0].values()}
        else:
            self._synced[path.stat().st_ino] = path.read_bytes()

    def changed(self) -> None:
        """Remember the names after a change; changes reach the disk in their order."""
        self._names.append(self._names_now())

    def lose_power(self) -> None:
        """Leave what a disk might hold after a loss of power."""
        self.changed()
        now = {status.st_ino: content for _, status, content in self._scan()}
        names = self._draw.choice(self._names)
        after = {name: self._choose_content(i, now.get(i)) for name, i in sorted(names.items())}
        for name in self._names_now():
            (self.folder / name).unlink()
        for name, content in after.items():
            (self.folder / name).write_bytes(content)
            self.sync(self.folder / name)
        self.sync(self.folder)

    def _choose_content(self, inode: int, current: bytes | None) -> bytes:
        synced = self._synced.get(inode)
        if current is None or synced == current:
            return synced or b""
        choices = [current[: self._draw.randint(0, len(current))], b"", current]
        return self._draw.choice([*choices, *([synced] if synced is not None else [])])

    def lose_all(self) -> None:
        """Lose everything, as if the device were replaced."""
        for name, _, _ in self._scan():
            (self.folder / name).unlink()
        self._synced, self._names = {}, [{}]

    def _names_now(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in sorted(self.folder.iterdir())}

    def _scan(self) -> Iterator[tuple[str, os.stat_result, bytes]]:
        for path in sorted(self.folder.iterdir()):
            yield path.name, path.stat(), path.read_bytes()


def _creates(path: object, flags: int, *_: object, **__: object) -> bool:
    return bool(flags & os.O_CREAT)


def _writes(file: object, mode: str = "r", *_: object, **__: object) -> bool:
    return mode[0] in "wax" and isinstance(file, (str, os.PathLike))


def _syncs_content(descriptor: int) -> bool:
    return not stat.S_ISDIR(os.fstat(descriptor).st_mode)  # a full disk still takes deletions


def _never(*_: object, **__: object) -> bool:
    return False


_CALLS: list[tuple[Any, str, Callable[..., bool]]] = [
    (os, "open", _creates),
    (os, "fsync", _syncs_content),
    (os, "replace", _never),
    (os, "unlink", _never),
    (io, "open", _writes),
]
"""Module, name, and whether a call of these arguments needs room on the disk."""


@contextmanager
def simulated_files(scheduler: Scheduler) -> Iterator[None]:
    """Let system calls of simulated clients on their files reach their simulated disks."""
    real = [getattr(module, name) for module, name, _ in _CALLS]
    try:
        for (module, name, needs_room), function in zip(_CALLS, real, strict=True):
            setattr(module, name, _simulated(scheduler, name, function, needs_room))
        yield
    finally:
        for (module, name, _), function in zip(_CALLS, real, strict=True):
            setattr(module, name, function)


def _simulated(
    scheduler: Scheduler, name: str, real: Callable[..., Any], needs_room: Callable[..., bool]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        process = scheduler.process
        disk = getattr(process, "disk", None)
        if process is None or not isinstance(disk, ClientDisk):
            return real(*args, **kwargs)
        process.point(name)
        if disk.full and needs_room(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result = real(*args, **kwargs)
        if name == "fsync":
            disk.sync(Path(os.readlink(f"/proc/self/fd/{args[0]}")))
            process.point("synced")
        elif name != "open" or needs_room(*args, **kwargs):
            disk.changed()
        return result

    return call
