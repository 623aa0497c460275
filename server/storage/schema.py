"""The versions of a run's database: which one a file has, and how it becomes today's.

`PRAGMA user_version` is the number of the last migration. Files from before there were numbers have
0; so has a new file, to which the same migrations apply.
"""

from __future__ import annotations

import importlib.metadata
import json
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from featherfed.server.errors import ServerError
from featherfed.server.storage import checksums

APPLICATION_ID = 0x66656174
"""Marks the file as ours: "feat"."""

_SCHEMA = Path(__file__).with_name("schema.sql")


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return a file's version; raise ServerError if it is not ours, newer, or too old."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application not in (0, APPLICATION_ID):
        raise ServerError(
            f"{path} is no run of featherfed (application id {application:#x}), or its first page "
            "is damaged; choose another output directory, or put a backup in its place"
        )
    if not 0 <= version <= VERSION:
        raise ServerError(
            f"{path} was written by a newer featherfed{_writer(connection)}: it has format "
            f"{version}, this version knows {VERSION}. Update featherfed on the server, or choose "
            "another output directory"
        )
    columns = [row[1] for row in connection.execute("PRAGMA table_info(run)")]
    if columns and "secret" not in columns:
        raise ServerError(
            f"{path} was written by a featherfed of before 2026-11-23 21:23 (commit cf85573), "
            "whose rounds this version cannot go on with: finish it with that version, or choose "
            "another output directory"
        )
    return version


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Migrate a checked file to today's version, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")  # fails now if the file cannot be written
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for statement in _statements():
        connection.execute(statement)
    for migrate in MIGRATIONS[version:]:
        migrate(connection)
    checksums.store_schema(connection)
    if version != VERSION:
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    _note_writer(connection)
    connection.execute("COMMIT")


_STOPS_OLDER_VERSIONS = (
    "CREATE VIEW IF NOT EXISTS refusals AS "
    'SELECT * FROM "written by a newer featherfed, update it on the server"'
)
"""Versions without numbers open any file, and would write rows without checksums. But they migrate
what is called refusals, and then fail and print the name of a table that this view lacks. A later
migration that renames a table must drop it first: SQLite reads all views then."""


def _statements() -> list[str]:
    """Return the statements of schema.sql, which change nothing where all tables exist."""
    statements, text = [], ""
    for line in _SCHEMA.read_text("utf-8").splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            statements.append(text)
            text = ""
    return statements


def _number_and_checksums(connection: sqlite3.Connection) -> None:
    """Count refusals of the oldest files, name the file, and compute checksums of its rows."""
    _count_refusals(connection)
    connection.execute(_STOPS_OLDER_VERSIONS)
    if not connection.execute("SELECT 1 FROM provenance").fetchall():
        connection.execute("INSERT INTO provenance VALUES (1, ?, 0, '')", (secrets.token_hex(8),))
    checksums.add_functions(connection)
    checksums.store_all(connection)


def _count_refusals(connection: sqlite3.Connection) -> None:
    """Move the rows of `refusals`, one a refusal in older versions, to the counts in `refused`."""
    sql = "SELECT 1 FROM sqlite_master WHERE name = 'refusals' AND type = 'table'"
    if not connection.execute(sql).fetchall():
        return
    connection.execute(
        "INSERT INTO refused SELECT round, client, reason, COUNT(*), detail, MIN(at), MAX(at) "
        "FROM refusals GROUP BY round, client, reason"
    )
    connection.execute("DROP TABLE refusals")


def _scores_by_name(connection: sqlite3.Connection) -> None:
    """Turn accuracies and losses into scores by name; clients' own training accuracy goes."""
    connection.execute("DROP VIEW refusals")  # SQLite reads all views when a column goes
    _add_columns(connection, "clients", "num_held_out INTEGER NOT NULL DEFAULT 0")
    columns = ("scores TEXT", "sums_before BLOB", "sums_after BLOB")
    for table, new, old, key in (
        ("versions", columns[:1], ("loss", "accuracy"), ("version",)),
        ("updates", columns, ("accuracy", "train_accuracy"), ("round", "client")),
    ):
        _add_columns(connection, table, *new)
        if "accuracy" not in _columns(connection, table):
            continue
        named = [name for name in old if not name.startswith("train")]
        rows = connection.execute(f"SELECT {', '.join([*named, *key])} FROM {table}").fetchall()
        for row in rows:
            values = tuple(row)[: len(named)]
            if None in values:
                continue
            where = " AND ".join(f"{name} = ?" for name in key)
            connection.execute(
                f"UPDATE {table} SET scores = ? WHERE {where}",
                (json.dumps(dict(zip(named, values, strict=True))), *tuple(row)[len(named) :]),
            )
        for name in old:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
    connection.execute(_STOPS_OLDER_VERSIONS)
    checksums.add_functions(connection)
    checksums.store_all(connection)


def _add_columns(connection: sqlite3.Connection, table: str, *columns: str) -> None:
    """Add the columns that a table lacks; new files have them from schema.sql."""
    known = _columns(connection, table)
    for column in columns:
        if column.split()[0] not in known:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _number_and_checksums,
    _scores_by_name,
)
"""Each brings a file from its index to the next version; never changed once released."""

VERSION = len(MIGRATIONS)
"""Version of the files that this code writes."""


def _note_writer(connection: sqlite3.Connection) -> None:
    ours = importlib.metadata.version("featherfed")
    connection.execute("UPDATE provenance SET featherfed = ? WHERE featherfed != ?", (ours, ours))


def _writer(connection: sqlite3.Connection) -> str:
    with suppress(sqlite3.Error, TypeError):
        return f" ({connection.execute('SELECT featherfed FROM provenance').fetchone()[0]})"
    return ""
