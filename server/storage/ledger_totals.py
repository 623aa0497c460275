"""Sums over the whole ledger, kept by triggers, so that nobody adds up all rounds again.

They stand in a temporary table of the writer's connection, in memory: what is rolled back in the
ledger is rolled back there, and the run's file knows nothing of it.
"""

from __future__ import annotations

from typing import Any

from featherfed.server.storage.database import Database
from featherfed.server.storage.records import TransferredBytes

Totals = dict[tuple[str, str], TransferredBytes]
"""Bytes by direction and kind."""

_DEVICE = "CASE WHEN {0}kind IN ('release', 'release_retry') THEN {0}client ELSE '' END"
"""The inference-only device that a row is of, empty for training clients: they have one sum."""


def _add(payload: str, message: str) -> str:
    """Return SQL that adds a new row to the sums, without what it had before."""
    key = f"{_DEVICE.format('NEW.')}, NEW.direction, NEW.kind"
    where = f"(device, direction, kind) = ({key})"
    # No conflict may arise here: it would be resolved by the clause of the outer statement.
    return (
        f"INSERT INTO ledger_totals SELECT {key}, 0, 0 "
        f"WHERE NOT EXISTS (SELECT 1 FROM ledger_totals WHERE {where}); "
        f"UPDATE ledger_totals SET payload_bytes = payload_bytes + NEW.payload_bytes - {payload}, "
        f"message_bytes = message_bytes + NEW.message_bytes - {message} WHERE {where}; "
    )


_TABLE = (
    f"CREATE TEMP TABLE ledger_totals AS SELECT {_DEVICE.format('')} AS device, direction, kind, "
    "SUM(payload_bytes) AS payload_bytes, SUM(message_bytes) AS message_bytes FROM ledger "
    "GROUP BY 1, 2, 3",
    "CREATE UNIQUE INDEX temp.ledger_totals_key ON ledger_totals (device, direction, kind)",
    "CREATE TEMP TRIGGER ledger_totals_insert AFTER INSERT ON main.ledger "
    f"BEGIN {_add('0', '0')} END",
    "CREATE TEMP TRIGGER ledger_totals_update AFTER UPDATE ON main.ledger "
    f"BEGIN {_add('OLD.payload_bytes', 'OLD.message_bytes')} END",
)


class LedgerTotals:
    """Knows the sums of the ledger's rows by direction and kind, and by inference-only device.

    It adds up the ledger when it is first asked, and follows its changes from then on.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Totals:
        """Return the bytes by direction and kind."""
        sql = (
            "SELECT direction, kind, SUM(payload_bytes), SUM(message_bytes) FROM ledger_totals "
            "GROUP BY direction, kind"
        )
        return {(row[0], row[1]): TransferredBytes(row[2], row[3]) for row in self._rows(sql)}

    def devices(self) -> dict[str, Totals]:
        """Return the bytes of each inference-only device, in order of names."""
        sql = (
            "SELECT device, direction, kind, payload_bytes, message_bytes FROM ledger_totals "
            "WHERE device != '' ORDER BY device"
        )
        found: dict[str, Totals] = {}
        for device, direction, kind, *sizes in self._rows(sql):
            found.setdefault(device, {})[direction, kind] = TransferredBytes(*sizes)
        return found

    def _rows(self, sql: str) -> list[Any]:
        run = self._database.run
        with self._database.lock:
            if not run("SELECT 1 FROM sqlite_temp_master WHERE name = 'ledger_totals'"):
                with self._database.transaction():
                    for statement in _TABLE:
                        run(statement)
            return run(sql)
