"""The tables of a run in PostgreSQL: made of schema.sql, with a version and forward migrations.

Table `schema_version` has one row with the number of the last migration; `provenance` holds the
version of featherfed that opened the run last, as in SQLite.
"""

from __future__ import annotations

import importlib.metadata
import re
import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from featherfed.server.errors import ServerError

_SCHEMA = Path(__file__).with_name("schema.sql")
_TYPES = {
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "BLOB": "BYTEA",
    "TEXT": 'TEXT COLLATE "C"',  # ordered by bytes, as in SQLite, whatever the database's own is
}
_SQLITE_ALONE = "checksums"
"""The table of schema.sql that PostgreSQL lacks: it has checksums of its pages instead."""

Connection = psycopg.Connection[Any]

_LEADER = """CREATE TABLE IF NOT EXISTS leader (  -- the server that serves the run
    id      BIGINT PRIMARY KEY CHECK (id = 1),
    address TEXT NOT NULL,                      -- HOST:PORT
    secret  TEXT NOT NULL                       -- by which it knows front ends
)"""

MIGRATIONS: tuple[Callable[[Connection], None], ...] = ()
"""The first brings a schema of version 1 to version 2, and so on; never changed once released.

New tables need none."""

VERSION = 1 + len(MIGRATIONS)
"""Version of the schemas that this code writes."""


def tables() -> dict[str, str]:
    """Return the statement that creates each table, by name."""
    made, text = {}, ""
    for line in _SCHEMA.read_text("utf-8").splitlines():
        text += re.sub(r"--.*", "", line) + "\n"
        if sqlite3.complete_statement(text):
            statement = re.sub(r"\b(INTEGER|REAL|BLOB|TEXT)\b", lambda m: _TYPES[m[0]], text)
            name = statement.split("EXISTS ")[1].split()[0]
            made[name] = statement
            text = ""
    del made[_SQLITE_ALONE]
    return made


def enter(connection: Connection, schema: str) -> None:
    """Let a connection find the tables of a schema, which need not be there."""
    connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))


def version_of(connection: Connection, schema: str, place: str) -> int:
    """Return the version of a schema, 0 if it is empty; raise ServerError if it is not ours or new.

    `place`: names the schema to people.
    """
    found = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
    names = {row[0] for row in connection.execute(found, (schema,))}
    if not names:
        return 0
    if "schema_version" not in names:
        raise ServerError(
            f"{place} holds tables that are not of featherfed; name another schema with "
            "[server] postgres_schema"
        )
    row = connection.execute("SELECT version FROM schema_version").fetchone()
    version = 0 if row is None else int(row[0])
    if version > VERSION:
        writer = connection.execute("SELECT featherfed FROM provenance").fetchone()
        raise ServerError(
            f"{place} was written by a newer featherfed{f' ({writer[0]})' if writer else ''}: it "
            f"has format {version}, this version knows {VERSION}. Update featherfed on the server, "
            "or name another schema with [server] postgres_schema"
        )
    return version


def _create(connection: Connection, schema: str) -> None:
    """Create a schema unless it is there, which needs no right to create any."""
    found = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    if connection.execute(found, (schema,)).fetchone() is None:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))


def bring_up_to_date(connection: Connection, schema: str, place: str) -> None:
    """Create a schema, or migrate it to today's version, in one transaction.

    The caller holds the run's lock. Raises ServerError if the schema is not ours, or newer.
    """
    with connection.transaction():
        version = version_of(connection, schema, place)
        if not version:
            _create(connection, schema)
        for statement in tables().values():
            connection.execute(statement.encode())
        for migrate in MIGRATIONS[version - 1 :] if version else ():
            migrate(connection)
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        connection.execute(_LEADER)
        if version != VERSION:
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version VALUES (%s)", (VERSION,))
        ours = importlib.metadata.version("featherfed")
        connection.execute(
            "INSERT INTO provenance VALUES (1, %s, 0, %s) ON CONFLICT (id) DO UPDATE SET "
            "featherfed = excluded.featherfed WHERE provenance.featherfed != excluded.featherfed",
            (secrets.token_hex(8), ours),
        )
