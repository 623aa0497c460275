"""Clients' statistics of their features, and the scaling that follows from them."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.storage.database import Database


class ScalingStore:
    """Stores the statistics of each client, and one scaling for the whole run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save_statistics(self, client: str, statistics: pb.Statistics) -> None:
        """Insert a client's statistics or replace them."""
        blob = statistics.SerializeToString(deterministic=True)
        sql = (
            "INSERT INTO statistics VALUES (?, ?) "
            "ON CONFLICT (client) DO UPDATE SET statistics = excluded.statistics"
        )
        self._database.run(sql, client, blob)

    def statistics(self) -> dict[str, pb.Statistics]:
        """Return the statistics by client, in order of names."""
        self._database.check("statistics")
        rows = self._database.run("SELECT client, statistics FROM statistics ORDER BY client")
        return {row[0]: pb.Statistics.FromString(row[1]) for row in rows}

    def fix(self, scaling: pb.Scaling) -> None:
        """Insert the run's scaling; it never changes."""
        blob = scaling.SerializeToString(deterministic=True)
        self._database.run("INSERT INTO scaling VALUES (1, ?)", blob)

    def scaling(self) -> pb.Scaling | None:
        """Return the run's scaling, None before it is fixed."""
        self._database.check("scaling")
        rows = self._database.run("SELECT scaling FROM scaling")
        return pb.Scaling.FromString(rows[0][0]) if rows else None
