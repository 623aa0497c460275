"""What whoever runs the server has decided: a pause, and which clients are excluded."""

from __future__ import annotations

from featherfed.server.storage.database import Database

_PAUSED, _PLANNED = "paused", "planned"
_SET = "INSERT INTO controls VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


class Controls:
    """Stores the decisions that must survive a restart of the server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def paused(self) -> bool:
        """Return whether no round may open."""
        return bool(self._value(_PAUSED))

    def set_paused(self, paused: bool) -> None:
        """Record whether no round may open."""
        self._set(_PAUSED, int(paused))

    def planned(self) -> int:
        """Return how many training rounds a run had before it was ended early; 0 if it was not."""
        return self._value(_PLANNED)

    def set_planned(self, rounds: int) -> None:
        """Record how many training rounds the run had before it is ended early."""
        self._set(_PLANNED, rounds)

    def _value(self, name: str) -> int:
        rows = self._database.run("SELECT value FROM controls WHERE name = ?", name)
        return int(rows[0][0]) if rows else 0

    def _set(self, name: str, value: int) -> None:
        self._database.run(_SET, name, value)

    def excluded(self) -> frozenset[str]:
        """Return the clients that are excluded."""
        return frozenset(row[0] for row in self._database.run("SELECT client FROM excluded"))

    def exclude(self, client: str, now: float) -> None:
        """Record that a client is excluded; `now`: seconds since the epoch."""
        self._database.run("INSERT INTO excluded VALUES (?, ?) ON CONFLICT DO NOTHING", client, now)

    def include(self, client: str) -> None:
        """Record that a client is excluded no more."""
        self._database.run("DELETE FROM excluded WHERE client = ?", client)
