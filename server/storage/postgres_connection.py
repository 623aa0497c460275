"""Connections to PostgreSQL, with what a server that must lose nothing asks of it."""

from __future__ import annotations

import logging
import zlib
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import NumericBinaryLoader

from featherfed.server.errors import ServerError
from featherfed.server.storage.postgres_address import Leader, PostgresAddress
from featherfed.server.storage.postgres_schema import Connection, enter

log = logging.getLogger(__name__)

OLDEST = 14
"""Oldest major version of PostgreSQL: pg_terminate_backend waits until a session has ended."""
_DEFAULTS = {
    "connect_timeout": "3",
    "target_session_attrs": "read-write",  # of several hosts the primary one
    # A network that is cut is noticed within some 10 seconds.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Unless the address says otherwise."""
_SESSION = (
    "SET synchronous_commit TO on",  # a commit that is reported is on disk
    "SET standard_conforming_strings TO on",
    # PostgreSQL notices a machine that is gone as soon, ends its session, and so frees its lock.
    "SET tcp_keepalives_idle TO 5",
    "SET tcp_keepalives_interval TO 2",
    "SET tcp_keepalives_count TO 3",
    "SET tcp_user_timeout TO 10000",
    "SET idle_in_transaction_session_timeout TO 0",
    "SET statement_timeout TO 0",
)
_LOCKS = 0x66656174 << 32
"""The advisory locks of this program, "feat", in the upper half of a key."""


class _WholeNumbers(NumericBinaryLoader):
    """Loads sums of integers, which PostgreSQL makes decimals of, as integers."""

    def load(self, data: Any) -> Any:
        """Return the value of a binary numeric."""
        return int(super().load(data))


def parameters(address: PostgresAddress) -> dict[str, Any]:
    """Return libpq's parameters; raise ServerError for an address that cannot be used.

    Nothing of the address is in the error's text: it may hold a password.
    """
    try:
        found = conninfo_to_dict(address.dsn)
    except psycopg.Error:
        raise ServerError(
            "the address of the PostgreSQL database is neither a URL, postgresql://USER@HOST/NAME, "
            'nor a connection string, "host=HOST dbname=NAME"'
        ) from None
    if "password" in found:
        raise ServerError(
            "the address of the PostgreSQL database holds a password, which others could read in "
            "the list of processes, in logs and in files; leave it out, and give it in PGPASSWORD, "
            "in ~/.pgpass or in a service file"
        )
    return {**_DEFAULTS, **found}


def place_of(address: PostgresAddress) -> str:
    """Return a run's place for people, in the terms of the address, which holds no password."""
    found = parameters(address)
    names = [f"{key}={found[key]}" for key in ("service", "host", "port", "dbname") if key in found]
    return f"the PostgreSQL schema {address.schema} ({' '.join(names) or 'default database'})"


def one_line(error: Exception) -> str:
    """Return an error's text in one line; libpq's have many."""
    return " ".join(str(error).split())


def connect(address: PostgresAddress, name: str) -> Connection:
    """Return a connection in autocommit mode, in which the run's tables are found.

    `name`: of the session, for PostgreSQL. Raises psycopg.OperationalError if PostgreSQL cannot be
    reached, ServerError if it is not one to trust a run to.
    """
    given = {**parameters(address), "application_name": name}
    connection: Connection = psycopg.connect(autocommit=True, **given)
    try:
        connection.adapters.register_loader("numeric", _WholeNumbers)
        for statement in _SESSION:
            connection.execute(statement.encode())
        enter(connection, address.schema)
        _check(connection, place_of(address))
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: Connection, place: str) -> None:
    version = connection.info.server_version // 10_000
    if version < OLDEST:
        raise ServerError(f"{place}: PostgreSQL {version} is too old; use {OLDEST} or newer")
    if _show(connection, "server_encoding") != "UTF8":
        raise ServerError(
            f"{place}: the database's encoding is {_show(connection, 'server_encoding')}; create "
            "one with ENCODING 'UTF8' TEMPLATE template0"
        )
    if _show(connection, "fsync") != "on":
        raise ServerError(
            f"{place}: fsync is off, so PostgreSQL may lose or damage what it has acknowledged; "
            "set fsync = on in postgresql.conf"
        )
    if _show(connection, "synchronous_commit") != "on":
        raise ServerError(f"{place}: synchronous_commit cannot be set to on")


def warn_without_checksums(connection: Connection, place: str) -> None:
    """Log a warning if PostgreSQL would not notice a damaged page."""
    if _show(connection, "data_checksums") != "on":
        log.warning(
            "%s: data_checksums is off, so a damaged page may go unnoticed; see initdb "
            "--data-checksums and pg_checksums", place,
            extra={"event": "no_data_checksums"},
        )  # fmt: skip


def _show(connection: Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def take_lock(connection: Connection, schema: str) -> bool:
    """Take a run's lock for the rest of the session; return whether no other session has it.

    The lock is of the schema's name, in one database.
    """
    key = _LOCKS + zlib.crc32(schema.encode())
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
    return row is not None and bool(row[0])


def leader_of(connection: Connection) -> Leader | None:
    """Return who serves a run, or did last; None if no server has said so."""
    known = connection.execute("SELECT to_regclass('leader')").fetchone()
    if known is None or known[0] is None:
        return None
    row = connection.execute("SELECT address, secret FROM leader").fetchone()
    return None if row is None else Leader(*row)


def end_other_sessions(connection: Connection, name: str) -> None:
    """End the sessions of this name that PostgreSQL has not yet noticed are gone.

    `name`: of this process alone; see `connect`.
    """
    connection.execute(
        "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity "
        "WHERE application_name = %s AND pid != pg_backend_pid()",
        (name,),
    )
