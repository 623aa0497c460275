"""How good the final version is on the held-out examples of each client."""

from __future__ import annotations

from featherfed.server.storage.database import Database


class Evaluations:
    """Stores the sums that each client reports of a version, once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, version: int, client: str, sums: bytes) -> None:
        """Insert a client's sums (little-endian float32, or empty) unless it has reported."""
        sql = "INSERT INTO evaluations VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        self._database.run(sql, version, client, sums)

    def of(self, version: int) -> dict[str, bytes]:
        """Return the sums of a version by client, in order of names."""
        self._database.check("evaluations", version)
        sql = "SELECT client, sums FROM evaluations WHERE version = ? ORDER BY client"
        return {row[0]: row[1] for row in self._database.run(sql, version)}

    def reporters(self, version: int) -> frozenset[str]:
        """Return the clients that have reported on a version."""
        rows = self._database.run("SELECT client FROM evaluations WHERE version = ?", version)
        return frozenset(row[0] for row in rows)
