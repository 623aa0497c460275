"""Refusals, counted by round, client and reason: a million refused calls are one row."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from featherfed.server.errors import CannotStore
from featherfed.server.storage.database import Database
from featherfed.server.storage.records import OTHERS, RefusalRecord

STRANGER = "(stranger)"
"""Stands for a caller whose name is unknown; no client can have this name."""
MAX_ROWS = 10_000
"""Rows that count a name apart; half of them at most are for names that have not joined."""

_ADD = (
    "INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (round, client, reason) "
    "DO UPDATE SET count = refused.count + excluded.count, detail = excluded.detail, "
    "last = excluded.last"
)


@dataclass
class _Unwritten:
    count: int
    detail: str
    first: float
    last: float


class Refusals:
    """Counts refusals in memory until `flush`, so that no peer can keep the disk busy."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._unwritten: dict[tuple[int, str, str], _Unwritten] = {}
        rows = database.run("SELECT round, client, reason FROM refused")
        self._known = {tuple(row) for row in rows}
        self.writes = 0
        """How often refusals were written since the start: unchanged, there are no new ones."""

    def add(
        self, round_: int, client: str, reason: str, detail: str, now: float, joined: bool = True
    ) -> bool:
        """Count a refusal; return whether it is the first of its round, client and reason.

        Does not block. `now`: seconds since the epoch. `joined`: the name is not just claimed.
        """
        with self._lock:
            key = round_, client, reason
            most = MAX_ROWS if joined else MAX_ROWS // 2
            if key not in self._known and len(self._known) >= most:
                key = round_, OTHERS, reason
            first = key not in self._known
            self._known.add(key)
            entry = self._unwritten.setdefault(key, _Unwritten(0, detail, now, now))
            entry.count, entry.detail, entry.last = entry.count + 1, detail, now
        return first

    def add_in_transaction(
        self, round_: int, client: str, reason: str, detail: str, now: float
    ) -> None:
        """Count a refusal as part of the current transaction."""
        self._database.run(_ADD, round_, client, reason, 1, detail, now, now)
        self._database.after_commit(self._count_write)

    def _count_write(self) -> None:
        self.writes += 1

    def flush(self) -> None:
        """Write the counts that wait in memory; keep them if the disk takes nothing now."""
        with self._lock:
            unwritten, self._unwritten = self._unwritten, {}
        if not unwritten:
            return
        try:
            with self._database.transaction():
                for key, entry in unwritten.items():
                    values = entry.count, entry.detail, entry.first, entry.last
                    self._database.run(_ADD, *key, *values)
                self._database.after_commit(self._count_write)
        except CannotStore:
            with self._lock:
                for key, entry in self._unwritten.items():
                    if key in unwritten:
                        entry.count += unwritten[key].count
                        entry.first = unwritten[key].first
                self._unwritten = {**unwritten, **self._unwritten}

    def all(self) -> list[RefusalRecord]:
        """Return the counts in order of the first refusal of each."""
        self.flush()
        sql = "SELECT * FROM refused ORDER BY first, round, client, reason"
        return [RefusalRecord(*row) for row in self._database.run(sql)]

    def of_round(self, round_: int) -> list[RefusalRecord]:
        """Return a round's counts in order of the first refusal of each."""
        self.flush()
        sql = "SELECT * FROM refused WHERE round = ? ORDER BY first, client, reason"
        return [RefusalRecord(*row) for row in self._database.run(sql, round_)]

    def newest(self, count: int) -> list[RefusalRecord]:
        """Return the counts written that grew last, the newest first."""
        sql = "SELECT * FROM refused ORDER BY last DESC, first DESC LIMIT ?"
        return [RefusalRecord(*row) for row in self._database.run(sql, count)]

    def by_reason(self) -> dict[str, int]:
        """Return how many refusals were written for each reason."""
        sql = "SELECT reason, SUM(count) FROM refused GROUP BY reason"
        return {row[0]: row[1] for row in self._database.run(sql)}
