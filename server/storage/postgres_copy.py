"""Copies a run from PostgreSQL, as of one moment, into an SQLite file that holds the same run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
from psycopg import IsolationLevel, sql

from featherfed.server.errors import ServerError
from featherfed.server.storage.postgres_address import PostgresAddress
from featherfed.server.storage.postgres_connection import connect, one_line, place_of
from featherfed.server.storage.postgres_schema import VERSION, tables, version_of
from featherfed.server.storage.sqlite import open_file

_ROWS = 64
"""Rows in memory at a time; payloads are large."""


def copy_to_sqlite(address: PostgresAddress, target: Path) -> None:
    """Copy a run, which may be going on, to a new file; raise ServerError if that cannot be."""
    place = place_of(address)
    try:
        with closing(connect(address, "featherfed copy")) as source:
            source.isolation_level = IsolationLevel.REPEATABLE_READ
            source.read_only = True
            with source.transaction():
                _check(version_of(source, address.schema, place), place)
                _copy(source, target)
    except psycopg.Error as error:
        target.unlink(missing_ok=True)
        raise ServerError(f"cannot read {place}: {one_line(error)}") from error


def _check(version: int, place: str) -> None:
    if version == 0:
        raise ServerError(f"{place} holds no run")
    if version != VERSION:
        raise ServerError(
            f"{place} was written by an older featherfed; serve the run once with this version"
        )


def _copy(source: psycopg.Connection[tuple[object, ...]], target: Path) -> None:
    with closing(open_file(target)) as file:
        file.execute("BEGIN")
        for table in tables():
            if table == "provenance":  # the copy is a database of its own
                continue
            columns = [row[1] for row in file.execute(f"PRAGMA table_info({table})")]
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            select = sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(table))
            places = ", ".join("?" * len(columns))
            with source.cursor("copy", withhold=False) as cursor:
                cursor.itersize = _ROWS
                cursor.format = psycopg.pq.Format.BINARY
                cursor.execute(select)
                file.executemany(
                    f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", cursor
                )
        file.execute("COMMIT")
        # One file, without a -wal beside it that could get lost.
        file.execute("PRAGMA journal_mode=DELETE")
