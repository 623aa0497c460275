"""Check a run's database before it is used: pages, indices, rows, and that no commit is missing.

Reads only: what is found to be damaged is left as it is, its write-ahead log included.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from featherfed.server.errors import ServerError
from featherfed.server.storage.checksums import UNREADABLE, add_functions, differences
from featherfed.server.storage.commit_count import Commits, commits_of, read_count
from featherfed.server.storage.failures import damaged, is_of_the_disk
from featherfed.server.storage.schema import check_version

_ROLLBACK_JOURNAL = b"\1\1"
"""Bytes 18 and 19 of a database that has no write-ahead log, as backups are."""


def check_file(path: Path) -> None:
    """Raise ServerError if a database is damaged, lacks commits, or has an unknown version."""
    check_copy(path, path, counted_commits(path))


def check_copy(copy: Path, source: Path, counted: Commits | None) -> None:
    """Raise ServerError that names `source` if a copy of it is damaged or lacks commits.

    `counted`: the commits of `source`, counted before it was copied.
    """
    if found := [*damaged_pages(copy)] or [*damaged_rows(copy)]:
        raise damaged(source, "; ".join(found))
    for text in missing_commits(copy, counted):
        raise ServerError(f"the run database {source}: {text}")


def damaged_pages(path: Path) -> Iterator[str]:
    """Yield the first faults in pages and indices; raise ServerError for an unknown version."""
    with _reading(path) as (connection, faults):
        check_version(connection, path)
        for row in connection.execute("PRAGMA integrity_check(3)"):
            if row[0] != "ok":
                faults.append(" ".join(row[0].split()))
    yield from faults


def damaged_rows(path: Path) -> Iterator[str]:
    """Yield the tables, or parts of them, whose rows are not those that were written."""
    with _reading(path) as (connection, faults):
        if check_version(connection, path):
            add_functions(connection)
            faults += [f"{what}: not what was written" for what in differences(connection)]
    yield from faults


@contextmanager
def _reading(path: Path) -> Iterator[tuple[sqlite3.Connection, list[str]]]:
    """Give a connection that changes nothing, and a list of faults; what it raises is one, too."""
    faults: list[str] = []
    with closing(_read_only(path)) as connection:
        try:
            yield connection, faults
        except UNREADABLE as error:
            if is_of_the_disk(error):
                raise
            faults.append(f"{type(error).__name__}: {error}")


def counted_commits(path: Path) -> Commits | None:
    """Return how many commits a database has had, None if it is not known.

    Read it before the database: a server that goes on only adds commits. A backup that was put in
    the database's place may lack some.
    """
    with path.open("rb") as file:
        restored = file.read(20)[18:] == _ROLLBACK_JOURNAL
    return None if restored else read_count(path)


def missing_commits(path: Path, counted: Commits | None) -> Iterator[str]:
    """Yield a text if a database, or a copy of it, lacks commits that were counted."""
    if counted is None:
        return
    with closing(_read_only(path)) as connection:
        commits = commits_of(connection) or Commits(counted.database, 0)  # all were lost
    missing = counted.number - commits.number
    if counted.database == commits.database and missing > 0:
        yield (
            f"its last {missing} commits are missing, with updates that "
            "may have been acknowledged: run.db-wal is damaged or gone. Nothing was changed; "
            "move run.db* away and put a backup (`featherfed backup`) in its place, or delete "
            "run.db-commits to go on with what is left"
        )


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
