"""A run in an SQLite file (WAL mode), with checksums of its rows and a count of its commits."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import IO, Any

from featherfed.compression.files import lock_file
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.storage.checksums import add_functions, differences_of, install
from featherfed.server.storage.commit_count import CommitCount, Commits, commits_of
from featherfed.server.storage.database import Database
from featherfed.server.storage.failures import WriteFailures, damaged, translate
from featherfed.server.storage.file_check import check_file
from featherfed.server.storage.schema import bring_up_to_date

_CACHE_BYTES = 2**23
"""Memory for pages of the database: a round's updates, where they are large, are not read again."""
_LOG_PAGES = 4096
"""Pages in the write-ahead log, 16 MiB, before they are copied into the file: the payloads of
several rounds take the same pages, and only the last of them is copied."""


class SqliteDatabase(Database):
    """A database that is one file, which one process at a time uses."""

    elsewhere = "choose another output directory"

    def __init__(self, path: Path, checked: bool = False) -> None:
        """Open or create the file; raise ServerError if it is in use, damaged or not writable.

        `checked`: the caller has looked for damage, and reads what there is nevertheless.
        """
        super().__init__(path, str(path), WriteFailures(f"the run database {path}"))
        self._trusted = checked
        self._process_lock = _lock_for_one_server(path)
        try:
            if not checked and path.exists() and path.stat().st_size:
                check_file(path)
            self._connection = open_file(path)
            self._commits = commits_of(self._connection) or Commits("", 0)
            self._count = CommitCount(path, self._commits)
        except sqlite3.Error as error:
            self._process_lock.close()
            meaning = translate(error, path)
            if isinstance(meaning, ServerError):
                raise meaning from error
            raise ServerError(
                f"cannot use the run database {path}: {error}; make room or allow writing there"
            ) from error
        except ServerError:
            self._process_lock.close()
            raise

    def close(self) -> None:
        """Close the file and let another server use it."""
        with self.lock:
            self._connection.close()
            self._count.close()
            self._process_lock.close()

    def verify(self) -> None:
        """Do nothing: the lock on the file is this process's until its end."""

    def check(self, table: str, part: int | None = None) -> None:
        """Raise ServerError if a table's rows, all or one round's, are not what was written."""
        if self._trusted:
            return
        with self.lock:
            try:
                found = list(differences_of(self._connection, table, part))
            except sqlite3.Error as error:
                raise translate(error, self.path) from error
        if found:
            raise self.damaged(f"{found[0]}: not what was written")

    def damaged(self, what: str) -> ServerError:
        """Return the error for a file that must not be used any more, and what to do."""
        return damaged(self.path, what)

    @property
    def _in_transaction(self) -> bool:
        return self._connection.in_transaction

    def _begin(self) -> None:
        self._execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        commits = self._commits._replace(number=self._commits.number + 1)
        self._execute("UPDATE provenance SET commits = ?", commits.number)
        self._execute("COMMIT")  # a full disk may show only here
        self._commits = commits
        self._count.write(commits.number)

    def _end(self) -> None:
        self._execute("COMMIT")

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite rolls back by itself on some errors
            self._connection.execute("ROLLBACK")

    def _roll_back_block(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK TO block")
            self._connection.execute("RELEASE block")

    def _changes(self) -> int:
        return int(self._execute("SELECT total_changes()")[0][0])

    def _execute(self, sql: str, *values: Any) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            meaning = translate(error, self.path)
            if isinstance(meaning, CannotStore):
                self.failures.failed(error)
            if meaning is error:
                raise
            raise meaning from error


def _lock_for_one_server(path: Path) -> IO[bytes]:
    try:
        return lock_file(path.with_suffix(".lock"))
    except BlockingIOError as error:
        raise ServerError(f"another server uses {path.parent}; stop it first") from error
    except OSError as error:
        raise ServerError(
            f"cannot write to the output directory {path.parent}: {error.strerror}; allow writing "
            "there, or choose another output directory in the run file"
        ) from error


def open_file(path: Path) -> sqlite3.Connection:
    """Return a connection to the file, of today's version, and writable."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_BYTES // 1024}")
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        add_functions(connection)
        bring_up_to_date(connection)
        install(connection)
    except BaseException:
        connection.close()
        raise
    return connection
