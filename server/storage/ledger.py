"""The ledger: bytes really sent, by round, client, direction and kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featherfed.server.storage.database import Database
from featherfed.server.storage.records import LedgerEntry, TransferredBytes
from featherfed.server.storage.unwritten_bytes import Counts, UnwrittenBytes


class Ledger:
    """Counts bytes; those of control messages wait in memory for the next commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten = UnwrittenBytes()
        database.around_commit = self._writing_unwritten

    def count(self, *entries: LedgerEntry) -> None:
        """Add bytes to the ledger.

        Control bytes never wait for the disk, and a crash before the next commit loses them; all
        others are on disk when this returns, or when the transaction around the call ends.
        """
        at_once = [entry for entry in entries if entry.kind != "control"]
        for entry in entries:
            if entry.kind == "control":
                self._unwritten.add(_counts(entry))
        if at_once:
            with self._database.transaction():
                for entry in at_once:
                    self._write(_counts(entry))

    def flush(self) -> None:
        """Write the counts that wait in memory; raise CannotStore if the disk takes nothing now."""
        if self._unwritten:
            with self._database.transaction():
                pass

    @contextmanager
    def _writing_unwritten(self) -> Iterator[None]:
        """Write the counts that wait in memory; keep them if the commit inside the block fails."""
        counts = self._unwritten.take()
        try:
            self._write(counts)
            yield
        except BaseException:
            self._unwritten.add(counts)
            raise

    def _write(self, counts: Counts) -> None:
        for key, sizes in counts.items():
            self._database.run(
                "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (round, client, direction, kind) DO UPDATE SET "
                "payload_bytes = payload_bytes + excluded.payload_bytes, "
                "message_bytes = message_bytes + excluded.message_bytes",
                *key, *sizes,
            )  # fmt: skip

    def message_bytes(self, direction: str) -> int:
        """Return all message bytes in one direction so far."""
        with self._database.lock:  # nothing moves from memory to the table meanwhile
            sql = "SELECT COALESCE(SUM(message_bytes), 0) FROM ledger WHERE direction = ?"
            written = int(self._database.run(sql, direction)[0][0])
            return written + self._unwritten.message_bytes(direction)

    def has_model(self, round_: int, client: str) -> bool:
        """Whether the client has downloaded a whole model in this round."""
        return bool(self._model_downloads("round = ? AND client = ?", round_, client))

    def clients_with_model(self, round_: int) -> set[str]:
        """Return the clients that have downloaded a whole model in this round."""
        return self._model_downloads("round = ?", round_)

    def _model_downloads(self, where: str, *values: object) -> set[str]:
        sql = (
            f"SELECT client FROM ledger WHERE {where} "
            "AND direction = 'downlink' AND kind = 'transfer'"
        )
        return {row[0] for row in self._database.run(sql, *values)}

    def devices(self) -> frozenset[str]:
        """Return the inference-only devices that bytes are counted for."""
        sql = "SELECT DISTINCT client FROM ledger WHERE kind IN ('release', 'release_retry')"
        return frozenset(row[0] for row in self._database.run(sql))

    def entries(self) -> list[LedgerEntry]:
        """Return the whole ledger in order of round, client, direction and kind."""
        self.flush()
        sql = "SELECT * FROM ledger ORDER BY round, client, direction, kind"
        return [LedgerEntry(*row) for row in self._database.run(sql)]

    def totals(self) -> dict[tuple[str, str], TransferredBytes]:
        """Return the bytes written so far by direction and kind."""
        sql = (
            "SELECT direction, kind, SUM(payload_bytes), SUM(message_bytes) FROM ledger "
            "GROUP BY direction, kind"
        )
        return {
            (direction, kind): TransferredBytes(payload, message)
            for direction, kind, payload, message in self._database.run(sql)
        }


def _counts(entry: LedgerEntry) -> Counts:
    key = entry.round, entry.client, entry.direction, entry.kind
    return {key: (entry.payload_bytes, entry.message_bytes)}
