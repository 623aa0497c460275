"""How many commits a run's database has had, in a file beside it: shows that some are missing.

If a byte of SQLite's write-ahead log changes, SQLite drops that commit and all after it without a
word. The count is written after each commit and never synced: it costs microseconds, and after a
loss of power it is merely too low, which accuses nobody.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Commits(NamedTuple):
    """A database's random name, and how many transactions were committed to it."""

    database: str
    number: int


def count_path(database: Path) -> Path:
    """Return the file of a database's commit count."""
    return database.with_name(f"{database.name}-commits")


def read_count(database: Path) -> Commits | None:
    """Return what the file beside a database says; None if there is none, or it is damaged."""
    try:
        text = count_path(database).read_text("ascii")
        name, number, checksum = text.split()
        if zlib.crc32(f"{name} {number}".encode()) == int(checksum, 16):
            return Commits(name, int(number))
    except (OSError, ValueError):
        pass
    return None


def commits_of(connection: sqlite3.Connection) -> Commits | None:
    """Return what a database itself says; None if it does not."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'provenance'").fetchall():
        return None
    sql = "SELECT CAST(database AS TEXT), CAST(commits AS INTEGER) FROM provenance"
    rows = connection.execute(sql).fetchall()
    return Commits(*rows[0]) if rows else None


class CommitCount:
    """The open file; a disk that does not take it only weakens the check at the next start."""

    def __init__(self, database: Path, commits: Commits) -> None:
        """Open or create the file, and write `commits` to it."""
        self._name = commits.database
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open(count_path(database), os.O_WRONLY | os.O_CREAT, 0o666)
        self.write(commits.number)

    def write(self, number: int) -> None:
        """Record the number of commits, all of which are on disk."""
        text = f"{self._name} {number:020}"
        line = f"{text} {zlib.crc32(text.encode()):08x}\n".encode()
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, line, 0)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
