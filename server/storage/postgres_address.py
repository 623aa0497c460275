"""Where a run is in PostgreSQL, and the file in its output folder that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from featherfed.compression.files import write_whole
from featherfed.server.errors import ServerError

ADDRESS_FILE = "run.postgres"
"""In a run's output folder: commands that are given the folder find the run's database by it."""


class PostgresAddress(NamedTuple):
    """A PostgreSQL database, and the schema in it that holds one run."""

    dsn: str
    """A connection string or URL of libpq, without a password."""
    schema: str = "featherfed"


class Leader(NamedTuple):
    """The server that serves a run, for the others of the same run."""

    address: str
    """HOST:PORT."""
    secret: str
    """What a front end shows it, to be believed whose calls it passes on."""


def read_address(folder: Path) -> PostgresAddress | None:
    """Return where the run of an output folder is in PostgreSQL; None if it is not there.

    Raises ServerError if the file that says it cannot be read.
    """
    path = folder / ADDRESS_FILE
    try:
        found = json.loads(path.read_text("utf-8"))
        return PostgresAddress(str(found["dsn"]), str(found["schema"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{path} cannot be read ({error}); serve the run once more with --postgres, which "
            "writes it anew"
        ) from error


def write_address(folder: Path, address: PostgresAddress) -> None:
    """Write the file; raise ServerError if the folder holds a run in SQLite, or takes no file."""
    if (folder / "run.db").exists():
        raise ServerError(
            f"{folder / 'run.db'} holds a run in SQLite, and --postgres names another database; "
            "choose another output directory in the run file, or serve without --postgres"
        )
    try:
        write_whole(folder / ADDRESS_FILE, json.dumps(address._asdict()) + "\n")
    except OSError as error:
        raise ServerError(f"cannot write to {folder}: {error.strerror}") from error


def check_not_in_postgres(folder: Path) -> None:
    """Raise ServerError if the run of a folder is in PostgreSQL, for a server that uses SQLite."""
    address = read_address(folder)
    if address is not None:
        raise ServerError(
            f"the run in {folder} is in PostgreSQL: serve it with --postgres {address.dsn!r}, or "
            "choose another output directory in the run file"
        )
