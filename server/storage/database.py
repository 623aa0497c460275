"""The SQLite database of one run (WAL mode): transactions, statements and their errors.

SQL is also in the other stores; nothing else of SQLite is.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from featherfed.compression.files import lock_file
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.storage.checksums import add_functions, differences_of, install
from featherfed.server.storage.commit_count import CommitCount, Commits, commits_of
from featherfed.server.storage.failures import WriteFailures, damaged, translate
from featherfed.server.storage.file_check import check_file
from featherfed.server.storage.schema import bring_up_to_date

_CACHE_BYTES = 2**23
"""Memory for pages of the database: a round's updates, where they are large, are not read again."""
_LOG_PAGES = 4096
"""Pages in the write-ahead log, 16 MiB, before they are copied into the file: the payloads of
several rounds take the same pages, and only the last of them is copied."""


class Database:
    """Runs the stores' SQL; safe to use from several threads.

    A transaction is durable when its block has ended. What cannot be written now raises
    CannotStore and has changed nothing; a damaged database raises ServerError.
    """

    def __init__(self, path: Path, checked: bool = False) -> None:
        """Open or create the file; raise ServerError if it is in use, damaged or not writable.

        `checked`: the caller has looked for damage, and reads what there is nevertheless.
        """
        self.path = path
        self.lock = threading.RLock()
        """Held during every statement and transaction."""
        self.failures = WriteFailures(f"the run database {path}")
        self.around_commit: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered before each commit of changes, left after it; writes rows that wait in memory."""
        self._after_commit: list[Callable[[], None]] = []
        self._trusted = checked
        self._process_lock = _lock_for_one_server(path)
        try:
            if not checked and path.exists() and path.stat().st_size:
                check_file(path)
            self._connection = _open(path)
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

    @contextmanager
    def transaction(self, *, waiting: bool = False) -> Iterator[None]:
        """Commit all changes of the block together, or none; an inner block joins the outer one.

        Rows that wait in memory are written with the changes; a block that changes nothing leaves
        them there, and waits for no disk, unless they are what the block is for (`waiting`).
        """
        with self.lock:
            if self._connection.in_transaction:
                yield
                return
            self._execute("BEGIN IMMEDIATE")
            before = self._changes()
            try:
                yield
                changed = waiting or self._changes() != before
                if changed:
                    with self.around_commit():
                        self._commit()
                else:
                    self._execute("COMMIT")
            except BaseException:
                self._after_commit.clear()
                if self._connection.in_transaction:  # SQLite rolls back by itself on some errors
                    self._connection.execute("ROLLBACK")
                raise
            if changed:
                self.failures.succeeded()
            calls, self._after_commit = self._after_commit, []
            for call in calls:
                call()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo the block's changes, and no others of the transaction around it, if it raises."""
        begin = len(self._after_commit)
        self._execute("SAVEPOINT block")
        try:
            yield
        except BaseException:
            del self._after_commit[begin:]
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK TO block")
                self._connection.execute("RELEASE block")
            raise
        self._execute("RELEASE block")

    def attempt(self) -> AbstractContextManager[None]:
        """Return a block that is undone if it raises: a transaction, or a part of the one begun.

        The caller holds `lock`.
        """
        return self.savepoint() if self._connection.in_transaction else self.transaction()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call a function once the transaction under way is on disk; now, if there is none."""
        with self.lock:
            if self._connection.in_transaction:
                self._after_commit.append(call)
            else:
                call()

    def _changes(self) -> int:
        return int(self._execute("SELECT total_changes()")[0][0])

    def _commit(self) -> None:
        commits = self._commits._replace(number=self._commits.number + 1)
        self._execute("UPDATE provenance SET commits = ?", commits.number)
        self._execute("COMMIT")  # a full disk may show only here
        self._commits = commits
        self._count.write(commits.number)

    def run(self, sql: str, *values: Any) -> list[Any]:
        """Execute one statement with `values` for its placeholders; return its rows.

        One that changes something outside a transaction is a transaction of its own.
        """
        with self.lock:
            if self._connection.in_transaction or sql.startswith(("SELECT", "PRAGMA")):
                return self._execute(sql, *values)
            with self.transaction():
                return self._execute(sql, *values)

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
            raise damaged(self.path, f"{found[0]}: not what was written")

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


def _open(path: Path) -> sqlite3.Connection:
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
