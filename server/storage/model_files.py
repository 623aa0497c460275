"""What clients measured of the final model's files: ranges for int8, and how good that is."""

from __future__ import annotations

from typing import NamedTuple

from featherfed.server.storage.database import Database


class StoredRanges(NamedTuple):
    """A client's ranges (float32 [tensors, 2], little, or empty), and of how many examples.

    `digest`: of the file that was measured.
    """

    digest: bytes
    ranges: bytes
    num_examples: int


class ModelFileReports:
    """Stores each client's ranges of a version, once, and its sums of the newest int8 file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_ranges(self, version: int, client: str, found: StoredRanges) -> None:
        """Insert a client's ranges, unless it has told some."""
        sql = "INSERT INTO ranges VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        self._database.run(sql, version, client, *found)

    def ranges(self, version: int) -> dict[str, StoredRanges]:
        """Return the ranges of a version by client, in order of names."""
        self._database.check("ranges", version)
        sql = (
            "SELECT client, digest, ranges, num_examples FROM ranges WHERE version = ? "
            "ORDER BY client"
        )
        rows = self._database.run(sql, version)
        return {row[0]: StoredRanges(row[1], row[2], row[3]) for row in rows}

    def add_sums(self, version: int, client: str, digest: bytes, sums: bytes) -> None:
        """Put a client's sums (float32, or empty) of the int8 file of a digest into their place."""
        sql = (
            "INSERT INTO file_evaluations VALUES (?, ?, ?, ?) ON CONFLICT (version, client) "
            "DO UPDATE SET digest = excluded.digest, sums = excluded.sums"
        )
        self._database.run(sql, version, client, digest, sums)

    def sums(self, version: int) -> dict[bytes, dict[str, bytes]]:
        """Return the sums of a version's int8 files by the file's digest and client."""
        self._database.check("file_evaluations", version)
        sql = "SELECT digest, client, sums FROM file_evaluations WHERE version = ? ORDER BY client"
        found: dict[bytes, dict[str, bytes]] = {}
        for digest, client, sums in self._database.run(sql, version):
            found.setdefault(digest, {})[client] = sums
        return found
