"""How often the run has published a version, counted where a restored backup does not reach.

A version that is stored may have been published: clients get it at once. The count is the number
of versions in the database, and of rounds that were published before an older database was put in
place and that are repeated now. It is also in a file beside the database, which no backup holds:
where the file counts more, the database is older than what clients have seen.
"""

from __future__ import annotations

import json
from pathlib import Path

from featherfed.compression.files import write_whole
from featherfed.server.errors import CannotStore
from featherfed.server.storage.database import Database


class Publications:
    """Counts published versions, repeated rounds included, in the database and beside it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def path(self) -> Path:
        """The file beside the database."""
        return self._database.path.with_suffix(".published")

    @property
    def repeated(self) -> int:
        """How many rounds were published before, and are not in this database as they were then."""
        return self._repeated() or 0

    @property
    def expects_file(self) -> bool:
        """Whether a file must stand beside this database; older versions of the code wrote none."""
        return self._repeated() is not None

    def in_database(self) -> int:
        """Return the count by the database."""
        newest = self._database.run("SELECT MAX(version) FROM versions")[0][0]
        return int(newest) + self.repeated

    def in_file(self, run: str) -> int | None:
        """Return the count by the file; None if there is none, or that of another run."""
        try:
            found = json.loads(self.path.read_text("utf-8"))
            return int(found["published"]) if found["run"] == run else None
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            return None

    def set_repeated(self, rounds: int) -> None:
        """Store how many rounds are repeated."""
        sql = (
            "INSERT INTO publications VALUES (1, ?) "
            "ON CONFLICT (id) DO UPDATE SET repeated = excluded.repeated"
        )
        self._database.run(sql, rounds)

    def write_file(self, run: str) -> None:
        """Write the count to the file; raise CannotStore if that fails.

        Call this at the end of a transaction: a version must not be published and not be counted.
        If the commit then fails, the file counts one too many, which harms nobody.
        """
        text = json.dumps({"run": run, "published": self.in_database()})
        try:
            write_whole(self.path, f"{text}\n")
        except OSError as error:
            self._database.failures.failed(error)
            raise CannotStore(str(error)) from error

    def _repeated(self) -> int | None:
        rows = self._database.run("SELECT repeated FROM publications")
        return int(rows[0][0]) if rows else None
