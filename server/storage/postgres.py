"""A run in a schema of a PostgreSQL database, served by whoever holds its advisory lock.

The session that holds the lock is the one that writes: with the connection, both are lost. Before
anything is written over a new connection, the lock is taken again, and the number of commits must
be the one that this process knows; otherwise another server has written, or a commit whose answer
was lost has been made after all, and what is in memory is not what is stored.
"""

from __future__ import annotations

import functools
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.errors import AdminShutdown, CannotConnectNow, CrashShutdown

from featherfed.server.errors import CannotStore, Deposed, ServerError
from featherfed.server.storage.commit_count import Commits
from featherfed.server.storage.database import Database
from featherfed.server.storage.failures import WriteFailures
from featherfed.server.storage.postgres_address import Leader, PostgresAddress
from featherfed.server.storage.postgres_connection import (
    connect,
    end_other_sessions,
    leader_of,
    one_line,
    place_of,
    take_lock,
    warn_without_checksums,
)
from featherfed.server.storage.postgres_schema import Connection, bring_up_to_date

log = logging.getLogger(__name__)

STANDBY_SECONDS = 0.5
"""How often a server that waits looks whether it may take over."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds between attempts to connect anew; they double each time."""
PRECEDENCE_SECONDS = 3.0
"""When PostgreSQL comes back, a standby waits so long: the one that leads has calls under way."""
IN_DOUBT_SECONDS = 10.0
"""How long a commit waits for PostgreSQL to come back and say whether it was made."""

_AWAY = "the connection to PostgreSQL is lost"
_LOST = (AdminShutdown, CannotConnectNow, CrashShutdown)
_NOT_NOW = ("08", "25006", "40", "53", "57", "58")
"""Beginnings of SQLSTATEs after which the same may succeed: no connection, read-only, a deadlock,
no room or memory, an operator's doing, the system's errors."""
_DAMAGED = "XX"
"""Data that PostgreSQL finds damaged, and errors within PostgreSQL."""


class PostgresDatabase(Database):
    """A database that several processes may want to serve, and one at a time does."""

    elsewhere = "name another schema with [server] postgres_schema"

    def __init__(
        self,
        address: PostgresAddress,
        path: Path,
        standby: Callable[[Leader | None], None] = lambda leader: None,
    ) -> None:
        """Wait until this process may serve the run, and open or create it.

        Raises ServerError if it cannot be used. `path`: files of the run stand beside it.
        `standby`: told now and then, while this waits, who serves the run.
        """
        place = place_of(address)
        failures = WriteFailures(place, "see whether PostgreSQL runs and can be reached")
        super().__init__(path, place, failures)
        self._address = address
        self._name = f"featherfed {secrets.token_hex(8)}"
        self._begun = False
        self._changed = 0
        self._deposed: Deposed | None = None
        self._again_at, self._pause = 0.0, FIRST_PAUSE
        self.front_secret = secrets.token_hex(16)
        self._advertised: str | None = None
        """The address that other servers are still to be told."""
        self._connection = self._when_leading(standby)
        try:
            bring_up_to_date(self._connection, address.schema, place)
            self._commits = _commits_of(self._connection)
            warn_without_checksums(self._connection, place)
        except ServerError:
            self._connection.close()
            raise
        except psycopg.Error as error:
            self._connection.close()
            raise ServerError(f"cannot use {place}: {error}") from error

    def _when_leading(self, standby: Callable[[Leader | None], None]) -> Connection:
        """Return a connection that holds the run's lock, as soon as no other server holds it."""
        waits, pause = False, 0.0

        def wait(leader: Leader | None) -> None:
            nonlocal waits
            if not waits:
                log.warning(
                    "another server serves the run in %s; this one is a standby, and takes over "
                    "when the other one ends or dies", self.place, extra={"event": "standby"},
                )  # fmt: skip
            waits = True
            standby(leader)
            time.sleep(STANDBY_SECONDS)

        while True:
            try:
                connection = self._lock_after(pause, wait)
            except psycopg.Error as error:
                if not waits:
                    raise ServerError(f"cannot use {self.place}: {one_line(error)}") from error
                pause = PRECEDENCE_SECONDS
                wait(None)  # a standby waits for PostgreSQL, too
                continue
            if waits:
                log.warning("taking over the run in %s", self.place, extra={"event": "takeover"})
            return connection

    def _lock_after(self, seconds: float, wait: Callable[[Leader | None], None]) -> Connection:
        """Connect, and call `wait` with who leads until this session has the run's lock."""
        connection = connect(self._address, self._name)
        try:
            time.sleep(seconds)
            while not take_lock(connection, self._address.schema):
                wait(leader_of(connection))
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection, which lets another server take over."""
        with self.lock:
            self._connection.close()

    def check(self, table: str, part: int | None = None) -> None:
        """Do nothing: PostgreSQL checks its pages itself, if it has checksums, as it reads them."""

    def verify(self) -> None:
        """Raise CannotStore while there is no connection, Deposed if this process must not write.

        It connects anew if it can. Another server may take over as soon as the connection is lost:
        called regularly, this tells soon.
        """
        with self.lock:
            if self._begun:
                return
            if self._advertised is None:
                self._execute("SELECT 1")
                return
            self.run(
                "INSERT INTO leader VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "address = excluded.address, secret = excluded.secret",
                self._advertised, self.front_secret,
            )  # fmt: skip
            self._advertised = None

    def advertise(self, address: str) -> None:
        """Tell other servers of the run, with the next `verify`, where this one listens."""
        with self.lock:
            self._advertised = address

    def damaged(self, what: str) -> ServerError:
        """Return the error for a database that must not be used any more, and what to do."""
        return ServerError(
            f"{self.place} is damaged ({what}); nothing was changed. Restore a backup of the "
            f"PostgreSQL database, or {self.elsewhere} to start anew"
        )

    @property
    def _in_transaction(self) -> bool:
        return self._begun

    def _begin(self) -> None:
        self._execute("BEGIN")
        self._begun = True

    def _commit(self) -> None:
        number = self._commits.number + 1
        rows = self._execute(
            "UPDATE provenance SET commits = ? WHERE commits = ? RETURNING commits",
            number, self._commits.number,
        )  # fmt: skip
        if not rows:
            raise self._depose("another server has written to the run")
        try:
            self._connection.execute("COMMIT")
        except psycopg.Error as error:
            if not self._is_lost(error):
                raise self._meaning(error) from error
            self._connection.close()
            if not self._was_made(number):
                raise CannotStore(_AWAY) from error
        self._begun = False
        self._commits = self._commits._replace(number=number)

    def _was_made(self, number: int) -> bool:
        """Return whether a commit whose answer is lost was made.

        Raises CannotStore if nobody knows: if it was, this process is deposed once that is known.
        """
        self._begun = False
        until = time.monotonic() + IN_DOUBT_SECONDS
        while True:
            try:
                return self._connect_again(number) == number
            except CannotStore:
                if time.monotonic() >= until:
                    raise
                time.sleep(max(0.0, min(self._again_at, until) - time.monotonic()))

    def _end(self) -> None:
        self._execute("COMMIT")
        self._begun = False

    def _roll_back(self) -> None:
        self._begun = False
        self._try("ROLLBACK")

    def _roll_back_block(self) -> None:
        if self._begun:
            self._try("ROLLBACK TO block")
            self._try("RELEASE block")

    def _try(self, statement: str) -> None:
        """Execute a statement that undoes changes; without the connection, they are undone."""
        if self._connection.closed:
            return
        try:
            self._connection.execute(statement.encode())
        except psycopg.Error:
            self._connection.close()

    def _changes(self) -> int:
        return self._changed

    def _execute(self, sql: str, *values: Any) -> list[Any]:
        if self._deposed is not None:
            raise self._deposed
        if self._connection.closed:
            if self._begun:  # the transaction is lost, and no part of it may go on in another one
                raise CannotStore(_AWAY)
            self._connect_again()
        try:
            cursor = self._connection.execute(
                _translated(sql), [_storable(value) for value in values] or None, binary=True
            )
            if not sql.startswith("SELECT"):
                self._changed += max(0, cursor.rowcount)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            if self._is_lost(error):
                self._connection.close()
            meaning = self._meaning(error)
            if meaning is error:
                raise
            raise meaning from error

    def _connect_again(self, *also: int) -> int:
        """Connect, and take the lock again; return the number of the last commit.

        It must be the last that this process knows of, or one of `also`.

        Raises CannotStore if that is not to be had now, and Deposed if the database is not as this
        process knows it.
        """
        if time.monotonic() < self._again_at:
            raise CannotStore(_AWAY)
        connection = None
        try:
            connection = connect(self._address, self._name)
            end_other_sessions(connection, self._name)
            leads = take_lock(connection, self._address.schema)
            commits = _commits_of(connection) if leads else None
        except (psycopg.Error, ServerError) as error:
            if connection is not None:
                connection.close()
            self._again_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._note_failure(error)
            raise CannotStore(_AWAY) from error
        if commits is None:
            connection.close()
            raise self._depose("another server serves the run")
        known = [self._commits._replace(number=number) for number in (self._commits.number, *also)]
        if commits not in known:
            connection.close()
            raise self._depose("the run was changed while the connection was lost")
        self._connection = connection
        self._again_at, self._pause = 0.0, FIRST_PAUSE
        self.failures.succeeded()
        return commits.number

    def _depose(self, why: str) -> Deposed:
        self._deposed = Deposed(
            f"{why} in {self.place}: this server must begin anew from what is stored"
        )
        return self._deposed

    def _note_failure(self, error: Exception) -> None:
        self.failures.failed(Exception(one_line(error)))

    def _is_lost(self, error: psycopg.Error) -> bool:
        return bool(self._connection.closed) or isinstance(error, _LOST)

    def _meaning(self, error: psycopg.Error) -> Exception:
        """Return the CannotStore or ServerError that an error means, or `error` itself.

        Clients read a CannotStore's text: it names neither hosts nor users.
        """
        state = error.sqlstate or ""
        if self._is_lost(error) or state.startswith(_NOT_NOW):
            self._note_failure(error)
            return CannotStore(_AWAY if self._is_lost(error) else f"PostgreSQL: {state}")
        if state.startswith(_DAMAGED):
            return self.damaged(str(error.diag.message_primary))
        return error


@functools.lru_cache(256)
def _translated(sql: str) -> bytes:
    """Return a statement with psycopg's placeholders."""
    return sql.replace("?", "%s").encode()


def _storable(value: Any) -> Any:
    """Return a value as SQLite stores it: not a number is no value."""
    return None if isinstance(value, float) and value != value else value


def _commits_of(connection: Connection) -> Commits:
    row = connection.execute("SELECT database, commits FROM provenance").fetchone()
    assert row is not None, "every run has this row"
    return Commits(*row)
