"""The server's simulated disk: crashes between and within commits, losses of power, full disks.

SQLite is the real one, on real files. A crash leaves copies of database and WAL, in a new folder:
as they are, or, after a loss of power, with the bytes of a commit under way torn.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from featherfed.server.storage import sqlite
from featherfed.simulator.scheduler import Process, Scheduler

Files = dict[str, bytes]
"""Content of the database's files by the end of their names."""

_SECTOR = 512
_FULL = 2
_ENDS = ("", "-wal", "-commits")


class ServerDisk:
    """The folder of the server's database, which every crash replaces by a new one."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self._root = folder
        self._draw = draw
        self._number = 0
        self.full = False
        self.loses_power = False
        """Whether the next crash is a loss of power, which may tear what is not synced."""
        self._left: Files | None = None
        self._unsynced: list[Files] = []
        self.path = self._new_folder()

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self._root / str(self._number)
        folder.mkdir(parents=True)
        return folder / "run.db"

    def read(self) -> Files:
        """Return the files as they are."""
        files = {}
        for end in _ENDS:
            with suppress(FileNotFoundError):
                files[end] = Path(f"{self.path}{end}").read_bytes()
        return files

    def committed(self, level: int) -> None:
        """Record a commit at a level of PRAGMA synchronous; below FULL it may be lost."""
        if level < _FULL:
            self._unsynced = [*self._unsynced[-3:], self.read()]

    def tear(self, before: Files, after: Files) -> None:
        """Let the crash leave something between the files before and after a commit."""
        self._left = {
            end: torn(before.get(end, b""), content, self._draw) for end, content in after.items()
        }

    def crash(self) -> None:
        """Put what the disk holds after a crash into a new folder."""
        left = self._left or self.read()
        if self.loses_power and self._unsynced and self._left is None:
            left = self._unsynced[0]
        self._left, self._unsynced, self.loses_power = None, [], False
        self.restore(left)

    def restore(self, files: Files) -> None:
        """Put these files into a new folder, in place of what is there but `run.published`."""
        old = self.path
        self.path = self._new_folder()
        with suppress(FileNotFoundError):
            shutil.copy(old.with_suffix(".published"), self.path.parent)
        shutil.rmtree(old.parent)
        for end, content in files.items():
            Path(f"{self.path}{end}").write_bytes(content)


def torn(before: bytes, after: bytes, draw: random.Random) -> bytes:
    """Return a file of which some sectors of a write have reached the disk, and others not."""
    result = bytearray(after)
    kind = draw.choice(("prefix", "sectors"))
    limit = draw.randint(0, len(after))
    for at in range(0, len(after), _SECTOR):
        lost = at >= limit if kind == "prefix" else draw.random() < 0.5
        if lost:
            old = before[at : at + _SECTOR]
            result[at : at + _SECTOR] = old + bytes(len(after[at : at + _SECTOR]) - len(old))
    return bytes(result)


def _disk_is_full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


class _Connection:
    """A connection whose statements may fail, or find the process dead."""

    def __init__(self, real: sqlite3.Connection, disk: ServerDisk, process: Process) -> None:
        self._real = real
        self._disk = disk
        self._process = process
        self._level = int(real.execute("PRAGMA synchronous").fetchone()[0])

    @property
    def in_transaction(self) -> bool:
        return self._real.in_transaction

    def close(self) -> None:
        self._real.close()

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        word = sql.lstrip()[:6].upper()
        if word == "ROLLBA":
            return self._real.execute(sql)
        self._process.point(f"sql {word}")
        if word == "SELECT":
            return self._real.execute(sql, values)
        if self._disk.full:
            raise _disk_is_full()
        if word != "COMMIT" and (word == "BEGIN " or self._real.in_transaction):
            return self._real.execute(sql, values)
        return self._commit(sql, values)

    def _commit(self, sql: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        self._process.point("commit")
        if self._disk.loses_power:  # a fault has chosen this commit
            before = self._disk.read()
            cursor = self._real.execute(sql, values)
            self._disk.tear(before, self._disk.read())
            self._process.kill()
            self._process.point("torn")
            return cursor
        cursor = self._real.execute(sql, values)
        self._disk.committed(self._level)
        self._process.point("committed")
        return cursor


@contextmanager
def simulated_database(scheduler: Scheduler, disk: ServerDisk) -> Iterator[None]:
    """Let the statements of simulated servers reach the simulated disk."""
    real = sqlite.open_file

    def open_(path: Path) -> Any:
        process = scheduler.process
        connection = real(path)
        if process is None:
            return connection
        if disk.full:
            connection.close()
            raise _disk_is_full()
        process.on_death.append(connection.close)
        return _Connection(connection, disk, process)

    sqlite.open_file = open_
    try:
        yield
    finally:
        sqlite.open_file = real
