"""The database of one run: transactions, what follows a commit, and statements, for all engines.

SQL is also in the other stores, written so that SQLite and PostgreSQL both run it: upserts by ON
CONFLICT, the table's name before a column that is also in `excluded`, ORDER BY where order counts.
What only one engine knows is in sqlite.py or postgres.py.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from featherfed.server.errors import ServerError
from featherfed.server.storage.failures import WriteFailures


class Database(ABC):
    """Runs the stores' SQL; safe to use from several threads.

    A transaction is durable when its block has ended. What cannot be written now raises
    CannotStore and has changed nothing; a damaged database raises ServerError.
    """

    elsewhere: str
    """What to do to begin another run, for people."""

    def __init__(self, path: Path, place: str, failures: WriteFailures) -> None:
        """`path`: the file, or where it would be; `place`: names the database to people."""
        self.path = path
        self.place = place
        self.lock = threading.RLock()
        """Held during every statement and transaction."""
        self.failures = failures
        self.front_secret = ""
        """What a server shows that passes calls on to this one; empty if none may."""
        self.around_commit: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered before each commit of changes, left after it; writes rows that wait in memory."""
        self._after_commit: list[Callable[[], None]] = []

    @abstractmethod
    def close(self) -> None:
        """Close the database and let another server use it."""

    @abstractmethod
    def check(self, table: str, part: int | None = None) -> None:
        """Raise ServerError if a table's rows, all or one round's, are not what was written."""

    @abstractmethod
    def verify(self) -> None:
        """Raise CannotStore or ServerError if this process cannot write now, or must not."""

    def advertise(self, address: str) -> None:
        """Tell other servers of the run where this one listens; a file has no others."""
        del address

    @abstractmethod
    def damaged(self, what: str) -> ServerError:
        """Return the error for a database that must not be used any more, and what to do."""

    @property
    @abstractmethod
    def _in_transaction(self) -> bool:
        """Whether a transaction is under way."""

    @abstractmethod
    def _begin(self) -> None:
        """Begin a transaction."""

    @abstractmethod
    def _commit(self) -> None:
        """End the transaction; its changes are on disk when this returns."""

    @abstractmethod
    def _end(self) -> None:
        """End a transaction that has changed nothing."""

    @abstractmethod
    def _roll_back(self) -> None:
        """Undo the transaction, if it is not undone by now; raise nothing of the engine's."""

    @abstractmethod
    def _roll_back_block(self) -> None:
        """Undo what came after `SAVEPOINT block`, as `_roll_back` does."""

    @abstractmethod
    def _changes(self) -> int:
        """Return how many rows were changed since the start."""

    @abstractmethod
    def _execute(self, sql: str, *values: Any) -> list[Any]:
        """Execute one statement, `?` its placeholders; return its rows.

        Raises what the engine's errors mean: CannotStore, ServerError, or the error itself.
        """

    @contextmanager
    def transaction(self, *, waiting: bool = False) -> Iterator[None]:
        """Commit all changes of the block together, or none; an inner block joins the outer one.

        Rows that wait in memory are written with the changes; a block that changes nothing leaves
        them there, and waits for no disk, unless they are what the block is for (`waiting`).
        """
        with self.lock:
            if self._in_transaction:
                yield
                return
            self._begin()
            before = self._changes()
            try:
                yield
                changed = waiting or self._changes() != before
                if changed:
                    with self.around_commit():
                        self._commit()
                else:
                    self._end()
            except BaseException:
                self._after_commit.clear()
                self._roll_back()
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
            self._roll_back_block()
            raise
        self._execute("RELEASE block")

    def attempt(self) -> AbstractContextManager[None]:
        """Return a block that is undone if it raises: a transaction, or a part of the one begun.

        The caller holds `lock`.
        """
        return self.savepoint() if self._in_transaction else self.transaction()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call a function once the transaction under way is on disk; now, if there is none."""
        with self.lock:
            if self._in_transaction:
                self._after_commit.append(call)
            else:
                call()

    def run(self, sql: str, *values: Any) -> list[Any]:
        """Execute one statement with `values` for its placeholders; return its rows.

        One that changes something outside a transaction is a transaction of its own.
        """
        with self.lock:
            if self._in_transaction or sql.startswith(("SELECT", "PRAGMA")):
                return self._execute(sql, *values)
            with self.transaction():
                return self._execute(sql, *values)
