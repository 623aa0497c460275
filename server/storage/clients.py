"""The clients that have joined the run."""

from __future__ import annotations

from featherfed.server.storage.database import Database
from featherfed.server.storage.records import ClientRecord


class Clients:
    """Stores the record that each client made when it last joined."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, name: str, record: ClientRecord, now: float) -> None:
        """Insert a client or replace its record; `now`: seconds since the epoch."""
        self._database.run(
            "INSERT INTO clients VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (client) DO UPDATE SET "
            "session = excluded.session, num_examples = excluded.num_examples, "
            "stages = excluded.stages, runtime = excluded.runtime, "
            "num_held_out = excluded.num_held_out",
            name, record.session, record.num_examples, " ".join(sorted(record.stages)),
            record.runtime, now, record.num_held_out,
        )  # fmt: skip

    def end_sessions(self, base: int) -> None:
        """End all sessions, so that clients join again; `base`: a random number below 2**62."""
        self._database.run(
            "UPDATE clients SET session = ? + numbered.number FROM "
            "(SELECT client, ROW_NUMBER() OVER (ORDER BY client) AS number FROM clients) "
            "AS numbered WHERE numbered.client = clients.client",
            base,
        )

    def count(self) -> int:
        """Return how many clients have joined."""
        return int(self._database.run("SELECT COUNT(*) FROM clients")[0][0])

    def runtimes(self, round_: int) -> dict[str, str]:
        """Return what each client whose update a round has said that it trains with."""
        sql = (
            "SELECT client, runtime FROM updates JOIN clients USING (client) WHERE round = ? "
            "ORDER BY client"
        )
        return {row[0]: row[1] for row in self._database.run(sql, round_)}

    def all(self) -> dict[str, ClientRecord]:
        """Return all clients by name, in order of names."""
        sql = "SELECT client, session, num_examples, stages, runtime, num_held_out FROM clients"
        return {
            name: ClientRecord(session, num_examples, frozenset(stages.split()), *rest)
            for name, session, num_examples, stages, *rest in self._database.run(
                f"{sql} ORDER BY client"
            )
        }
