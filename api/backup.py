"""`featherfed backup`: a run's database as of one moment, while its server goes on.

Of a run in PostgreSQL it makes an SQLite file, with which the run can go on without PostgreSQL.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from featherfed.compression.files import put_in_place, scratch_of, write_whole
from featherfed.server.errors import ServerError
from featherfed.server.storage.failures import damaged
from featherfed.server.storage.file_check import check_copy, counted_commits
from featherfed.server.storage.postgres_address import read_address

DATABASE = "run.db"
KEPT = ("run.toml", "metrics.json")
"""Other files that are copied if they exist; the rest can be made from the database."""


def back_up(directory: Path, destination: Path) -> Path:
    """Copy the run in `directory` to the folder `destination`, made if need be; return the copy.

    An earlier backup in it is replaced atomically. Raises ServerError.
    """
    if not holds_run(directory):
        raise ServerError(
            f"{directory / DATABASE}: no such file; give the output directory of a run"
        )
    try:
        destination.mkdir(parents=True, exist_ok=True)
        if destination.samefile(directory):
            raise ServerError(f"{destination} is the run's own folder; choose another")
        copy = destination / DATABASE
        if any((destination / f"{DATABASE}{end}").exists() for end in ("-wal", "-shm")):
            raise ServerError(f"{destination} holds a run in use, not a backup; choose another")
        scratch_of(copy).unlink(missing_ok=True)
        file = directory / DATABASE
        counted = counted_commits(file) if file.exists() else None
        copy_database(directory / DATABASE, scratch_of(copy))
        try:
            check_copy(scratch_of(copy), directory / DATABASE, counted)
        except ServerError:
            scratch_of(copy).unlink()
            raise
        put_in_place(scratch_of(copy), copy)
        for name in KEPT:
            if (directory / name).is_file():
                write_whole(destination / name, (directory / name).read_bytes())
    except OSError as error:
        raise ServerError(f"cannot back up to {destination}: {error}; make room there") from error
    return copy


def holds_run(directory: Path) -> bool:
    """Whether a folder is the output of a run, in SQLite or in PostgreSQL; raise ServerError."""
    return (directory / DATABASE).is_file() or read_address(directory) is not None


def copy_database(source: Path, target: Path) -> None:
    """Copy a consistent snapshot of a database, in use or not; raise ServerError if it cannot.

    `source`: the file, or where it would be if the run were not in PostgreSQL; `target`: a file.
    """
    if (address := read_address(source.parent)) is not None:
        from featherfed.server.storage.postgres_copy import copy_to_sqlite  # needs psycopg

        copy_to_sqlite(address, target)
        return
    try:
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            # In one step: a writer does not wait, and no half of a transaction is copied.
            old.backup(new)
            # One file, without a -wal beside it that could get lost.
            new.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.DatabaseError as error:
        target.unlink(missing_ok=True)
        if isinstance(error, sqlite3.OperationalError):
            raise ServerError(f"cannot copy {source} to {target.parent}: {error}") from error
        raise damaged(source, str(error)) from error
