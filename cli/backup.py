"""`featherfed backup`: a run's database as of one moment, while its server goes on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from featherfed.compression.files import put_in_place, scratch_of, write_whole
from featherfed.server.errors import ServerError
from featherfed.server.storage.commit_count import Commits
from featherfed.server.storage.failures import damaged
from featherfed.server.storage.file_check import (
    counted_commits,
    damaged_pages,
    damaged_rows,
    missing_commits,
)

DATABASE = "run.db"
KEPT = ("run.toml", "metrics.json")
"""Other files that are copied if they exist; the rest can be made from the database."""


def back_up(directory: Path, destination: Path) -> Path:
    """Copy the run in `directory` to the folder `destination`, made if need be; return the copy.

    An earlier backup in it is replaced atomically. Raises ServerError.
    """
    if not (directory / DATABASE).is_file():
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
        counted = counted_commits(directory / DATABASE)
        copy_database(directory / DATABASE, scratch_of(copy))
        _check_copy(directory / DATABASE, scratch_of(copy), counted)
        put_in_place(scratch_of(copy), copy)
        for name in KEPT:
            if (directory / name).is_file():
                write_whole(destination / name, (directory / name).read_bytes())
    except OSError as error:
        raise ServerError(f"cannot back up to {destination}: {error}; make room there") from error
    return copy


def copy_database(source: Path, target: Path) -> None:
    """Copy a consistent snapshot of a database, in use or not; raise ServerError if it cannot."""
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


def _check_copy(source: Path, copy: Path, counted: Commits | None) -> None:
    """Raise ServerError, and delete the copy, if it is one of a damaged database."""
    try:
        if found := [*damaged_pages(copy)] or [*damaged_rows(copy)]:
            raise damaged(source, "; ".join(found))
        for text in missing_commits(copy, counted):
            raise ServerError(f"the run database {source}: {text}")
    except ServerError:
        copy.unlink()
        raise
