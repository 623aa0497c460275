"""Checksums of all rows, kept by triggers: SQLite itself notices no changed byte in a value.

Table `checksums` holds for each table, and in it for each round, the exclusive or of the 64-bit
BLAKE2b of all rows. The triggers are part of the writer's connection, so every store's statements
maintain it, in the transaction that changes the rows.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

from featherfed.server.storage.failures import is_of_the_disk

_OWN = ("checksums", "provenance")
"""Tables without checksums: the second's only number is compared with the commit count."""
_SCHEMA = "sqlite_master"
"""Stands for the tables' definitions among the checksums."""
_PART = ("round", "version")
"""Columns whose value tells the parts of a table that are checked apart; else there is one part."""


UNREADABLE = (sqlite3.Error, UnicodeDecodeError, SystemError)
"""What sqlite3 raises for text that is none: the last two come from arguments of functions."""


def install(connection: sqlite3.Connection) -> None:
    """Let a connection maintain the checksums from now on."""
    add_functions(connection)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA recursive_triggers = ON")  # or rows that REPLACE deletes are missed
    for table in _tables(connection):
        events = {"INSERT": ["NEW"], "DELETE": ["OLD"], "UPDATE": ["OLD", "NEW"]}
        # The one row of the model is large, and always replaced as a whole: see `_change`.
        for event, rows in ({"INSERT": ["NEW"]} if table == "model" else events).items():
            body = "".join(_change(connection, table, row) for row in rows)
            connection.execute(
                f"CREATE TEMP TRIGGER checksum_{table}_{event} AFTER {event} ON main.{table} "
                f"BEGIN {body} END"
            )


def add_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the SQL functions that compute checksums."""
    connection.create_function("toggle_row", -1, _toggle_row, deterministic=True)
    connection.create_aggregate("rows_checksum", -1, _RowsChecksum)


def store_all(connection: sqlite3.Connection) -> None:
    """Compute the checksums of all rows anew, as part of the caller's transaction."""
    connection.execute("DELETE FROM checksums")
    for table in _tables(connection):
        for part, value in _computed(connection, table).items():
            connection.execute("INSERT INTO checksums VALUES (?, ?, ?)", (part, table, value))
    store_schema(connection)


def store_schema(connection: sqlite3.Connection) -> None:
    """Replace the checksum of the tables' definitions if it is another."""
    value = _of_schema(connection)
    if _stored(connection, _SCHEMA) != {0: value}:
        connection.execute("DELETE FROM checksums WHERE name = ?", (_SCHEMA,))
        connection.execute("INSERT INTO checksums VALUES (0, ?, ?)", (_SCHEMA, value))


def differences(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield the name of each table, or part of one, whose rows are not those that were written."""
    if _stored(connection, _SCHEMA) != {0: _of_schema(connection)}:
        yield "the tables' definitions"
        return
    tables = _tables(connection)
    for table in tables:
        yield from differences_of(connection, table)
    known = {*tables, _SCHEMA}
    for row in connection.execute("SELECT DISTINCT name FROM checksums WHERE value != 0"):
        if row[0] not in known:
            yield f"table checksums: {row[0]!r}"


def differences_of(
    connection: sqlite3.Connection, table: str, part: int | None = None
) -> Iterator[str]:
    """Yield each part of a table, or the one named, whose rows are not those that were written."""
    try:
        computed, stored = _computed(connection, table, part), _stored(connection, table, part)
    except UNREADABLE as error:
        if is_of_the_disk(error):
            raise
        yield f"table {table} ({error})"
        return
    for each in sorted(computed.keys() | stored.keys()):
        if computed.get(each, 0) != stored.get(each, 0):
            column = _part_column(connection, table)
            yield f"table {table}" + (f", {column} {each}" if column else "")


def _change(connection: sqlite3.Connection, table: str, row: str) -> str:
    """Return SQL that takes a row into its table's checksum, or out of it.

    The model's checksum is that of its new row alone, whatever stood there before.
    """
    column = _part_column(connection, table)
    part = f"{row}.{column}" if column else "0"
    values = ", ".join(f"{row}.{name}" for name in _columns(connection, table))
    where = f"part = {part} AND name = '{table}'"
    before = "0" if table == "model" else "value"
    # No conflict may arise here: it would be resolved by the clause of the outer statement.
    return (
        f"INSERT INTO checksums SELECT {part}, '{table}', 0 "
        f"WHERE NOT EXISTS (SELECT 1 FROM checksums WHERE {where}); "
        f"UPDATE checksums SET value = toggle_row({before}, {values}) WHERE {where}; "
    )


def _computed(
    connection: sqlite3.Connection, table: str, part: int | None = None
) -> dict[int, int]:
    column = _part_column(connection, table)
    columns = ", ".join(_columns(connection, table))
    where = "" if part is None or not column else f"WHERE {column} = {int(part)}"
    sql = f"SELECT {column or 0} AS part, rows_checksum({columns}) FROM {table} {where} GROUP BY 1"
    return {row[0]: row[1] for row in connection.execute(sql)}


def _stored(connection: sqlite3.Connection, table: str, part: int | None = None) -> dict[int, int]:
    sql = "SELECT part, value FROM checksums WHERE name = :table"
    if part is not None:  # in one statement for both cases, SQLite would read all parts
        sql += " AND part = :part"
    rows = connection.execute(sql, {"table": table, "part": part})
    return {row[0]: row[1] for row in rows}


def _of_schema(connection: sqlite3.Connection) -> int:
    sql = "SELECT rows_checksum(type, name, tbl_name, sql) FROM main.sqlite_master"
    return int(connection.execute(sql).fetchone()[0])


def _tables(connection: sqlite3.Connection) -> list[str]:
    sql = "SELECT name FROM main.sqlite_master WHERE type = 'table' ORDER BY name"
    names = [row[0] for row in connection.execute(sql)]
    return [name for name in names if name not in _OWN and not name.startswith("sqlite_")]


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    sql = "SELECT name FROM pragma_table_info(?, 'main') ORDER BY cid"
    return [row[0] for row in connection.execute(sql, (table,))]


def _part_column(connection: sqlite3.Connection, table: str) -> str | None:
    """Return the column that tells a table's parts apart; the model has one row, so one part."""
    columns = [] if table == "model" else _columns(connection, table)
    return next((name for name in _PART if name in columns), None)


def _toggle_row(checksum: int, *values: object) -> int:
    """Take a row into a checksum, or out of it: both are the same exclusive or."""
    return checksum ^ _row_checksum(*values)


def _row_checksum(*values: object) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, bytes):
            digest.update(b"%d:" % len(value))
            digest.update(value)  # by itself: payloads are large
        else:
            # ASCII text, which every Python and every machine makes alike of such values.
            digest.update(ascii(value).encode("ascii") + b",")
    return int.from_bytes(digest.digest(), "little", signed=True)


class _RowsChecksum:
    """The exclusive or of rows' checksums, as an SQL aggregate."""

    def __init__(self) -> None:
        self._value = 0

    def step(self, *values: object) -> None:
        """Add a row."""
        self._value ^= _row_checksum(*values)

    def finalize(self) -> int:
        """Return the checksum of all rows."""
        return self._value
