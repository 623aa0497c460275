"""Sums over the whole ledger, kept in memory, so that nobody adds up all rounds again."""

from __future__ import annotations

from featherfed.server.storage.database import Database
from featherfed.server.storage.records import TransferredBytes
from featherfed.server.storage.unwritten_bytes import Counts

Totals = dict[tuple[str, str], TransferredBytes]
"""Bytes by direction and kind."""

RELEASES = ("release", "release_retry")
"""Kinds of what inference-only devices are sent."""


class LedgerTotals:
    """Knows the sums of the ledger's rows by direction and kind, and by inference-only device."""

    def __init__(self, database: Database) -> None:
        """Add up the rows that are stored."""
        self._database = database
        self._sums: dict[tuple[str, str, str], TransferredBytes] = {}
        sql = (
            f"SELECT CASE WHEN kind IN {RELEASES} THEN client ELSE '' END, "
            "direction, kind, SUM(payload_bytes), SUM(message_bytes) FROM ledger GROUP BY 1, 2, 3"
        )
        for device, direction, kind, *sizes in database.run(sql):
            self._sums[device, direction, kind] = TransferredBytes(*sizes)

    def add(self, counts: Counts) -> None:
        """Add bytes that were committed."""
        with self._database.lock:
            for (_, client, direction, kind), sizes in counts.items():
                key = client if kind in RELEASES else "", direction, kind
                self._sums[key] = _plus(self._sums.get(key, TransferredBytes()), *sizes)

    def all(self) -> Totals:
        """Return the bytes by direction and kind."""
        totals: Totals = {}
        with self._database.lock:
            for (_, *key), size in self._sums.items():
                before = totals.get((key[0], key[1]), TransferredBytes())
                totals[key[0], key[1]] = _plus(before, *size)
        return totals

    def devices(self) -> dict[str, Totals]:
        """Return the bytes of each inference-only device, in order of names."""
        found: dict[str, Totals] = {}
        with self._database.lock:
            for (device, direction, kind), size in sorted(self._sums.items()):
                if device:
                    found.setdefault(device, {})[direction, kind] = size
        return found


def _plus(size: TransferredBytes, payload: int, message: int) -> TransferredBytes:
    return TransferredBytes(size.payload + payload, size.message + message)
