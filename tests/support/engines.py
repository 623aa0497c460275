"""Which engine holds the runs that tests make in this process: SQLite, or PostgreSQL."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from featherfed.server.storage.postgres_address import PostgresAddress
from featherfed.server.storage.store import Store

_dsn: list[str] = []
"""The PostgreSQL database in use, if any."""


@contextmanager
def on_postgres(dsn: str) -> Iterator[None]:
    """Keep runs in a PostgreSQL database inside of this block."""
    _dsn.append(dsn)
    try:
        yield
    finally:
        _dsn.pop()


def address_of(folder: Path) -> PostgresAddress | None:
    """Return where the run of an output folder is in PostgreSQL: a schema for each folder."""
    if not _dsn:
        return None
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:20]
    return PostgresAddress(_dsn[-1], f"run_{name}")


def open_store(folder: Path) -> Store:
    """Open or create the run of an output folder."""
    return Store(folder / "run.db", postgres=address_of(folder))


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """Return what another process than the run's server reads."""
    address = address_of(folder)
    if address is None:
        with closing(sqlite3.connect(folder / "run.db")) as db:
            return db.execute(sql).fetchall()
    from featherfed.server.storage.postgres_connection import connect

    with closing(connect(address, "test")) as connection:
        return connection.execute(sql.encode()).fetchall()
