"""`featherfed check`: check the files of a run or of a client."""

from __future__ import annotations

import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

import click

from featherfed.api.backup import DATABASE, copy_database
from featherfed.cli.check_client import FILES, Check, checks_of_client
from featherfed.cli.check_run import checks_of_run
from featherfed.edge_client.errors import ClientError
from featherfed.server.errors import ServerError
from featherfed.server.storage.file_check import (
    counted_commits,
    damaged_pages,
    damaged_rows,
    missing_commits,
)
from featherfed.server.storage.postgres_address import read_address
from featherfed.server.storage.store import Store

_PAGES = "pages and indices of the database"


def check_directory(directory: Path) -> bool:
    """Check and print a run's output or a client's state; return whether nothing is wrong.

    A run is checked on a copy of its database, so its server may be running.
    """
    if read_address(directory) is not None:
        return _check_run_in_postgres(directory / DATABASE)
    if (directory / DATABASE).is_file():
        return _check_run(directory / DATABASE)
    if any((directory / f"{name}.npz").exists() for name in FILES):
        return _report(checks_of_client(directory))
    raise ClientError(
        f"{directory} holds neither a run ({DATABASE}) nor a client's state (model.npz); give the "
        "output directory of `featherfed serve` or the state directory of `featherfed join`"
    )


def _check_run_in_postgres(path: Path) -> bool:
    """Check what the rows say; PostgreSQL checks pages itself."""
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        copy = Path(scratch) / DATABASE
        copy_database(path, copy)
        with closing(Store(copy, checked=True)) as store:
            return _report([*checks_of_run(store)])


def _check_run(path: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        copy = Path(scratch) / DATABASE
        try:
            counted = counted_commits(path)
            copy_database(path, copy)
            pages = list(damaged_pages(copy))
        except ServerError as error:
            pages = [str(error)]
        checks: list[Check] = [(_PAGES, partial(iter, pages))]
        if pages:
            return _report(checks)
        rows = list(damaged_rows(copy))  # before the copy is opened as a run
        missing = list(missing_commits(copy, counted))
        checks.append(("rows as they were written", partial(iter, rows)))
        checks.append(("no commit is missing", partial(iter, missing)))
        try:
            store = Store(copy, checked=True)
        except ServerError:
            return _report(checks) and False
        try:
            return _report([*checks, *checks_of_run(store)])
        finally:
            store.close()


def _report(checks: list[Check]) -> bool:
    """Run the checks and print what they find; return whether that is nothing."""
    good = True
    for name, find in checks:
        try:
            wrong = list(find())
        except Exception as error:  # a damaged row may break anything
            wrong = [f"{type(error).__name__}: {error}"]
        click.echo(f"{'WRONG' if wrong else 'ok   '} {name}")
        for text in wrong:
            click.echo(f"      {text}")
        good = good and not wrong
    return good
