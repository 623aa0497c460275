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
from featherfed.server.storage.failures import WriteFailures, damaged, translate

_SCHEMA = Path(__file__).with_name("schema.sql")


class Database:
    """Runs the stores' SQL; safe to use from several threads.

    A transaction is durable when its block has ended. What cannot be written now raises
    CannotStore and has changed nothing; a damaged database raises ServerError.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file; raise ServerError if it is in use, damaged or not writable."""
        self.path = path
        self.lock = threading.RLock()
        """Held during every statement and transaction."""
        self.failures = WriteFailures(f"the run database {path}")
        self.around_commit: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered before each commit and left after it; writes rows that wait in memory."""
        self._process_lock = _lock_for_one_server(path)
        try:
            self._connection = _open(path)
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
            self._process_lock.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all changes of the block together, or none; an inner block joins the outer one."""
        with self.lock:
            if self._connection.in_transaction:
                yield
                return
            self.run("BEGIN IMMEDIATE")
            try:
                yield
                with self.around_commit():
                    self.run("COMMIT")  # a full disk may show only here
            except BaseException:
                if self._connection.in_transaction:  # SQLite rolls back by itself on some errors
                    self._connection.execute("ROLLBACK")
                raise
            self.failures.succeeded()

    def run(self, sql: str, *values: Any) -> list[Any]:
        """Execute one statement with `values` for its placeholders; return its rows."""
        with self.lock:
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
    """Return a connection to the file, checked, with today's schema, and writable."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        found = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise damaged(path, "; ".join(" ".join(text.split()) for text in found))
        connection.executescript(_SCHEMA.read_text("utf-8"))
        connection.execute("BEGIN IMMEDIATE")  # fails now if the file cannot be written
        _migrate_refusals(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate_refusals(connection: sqlite3.Connection) -> None:
    """Move the rows of `refusals`, one a refusal in older versions, to the counts in `refused`."""
    sql = "SELECT 1 FROM sqlite_master WHERE name = 'refusals'"
    if not connection.execute(sql).fetchall():
        return
    connection.execute(
        "INSERT INTO refused SELECT round, client, reason, COUNT(*), detail, MIN(at), MAX(at) "
        "FROM refusals GROUP BY round, client, reason"
    )
    connection.execute("DROP TABLE refusals")
