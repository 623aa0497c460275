"""The ledger: bytes really sent, by round, client, direction and kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featherfed.server.storage.database import Database
from featherfed.server.storage.ledger_totals import LedgerTotals, Totals
from featherfed.server.storage.records import LedgerEntry, RoundBytes
from featherfed.server.storage.unwritten_bytes import Counts, UnwrittenBytes


class Ledger:
    """Counts bytes; those of control messages wait in memory until something else is committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten = UnwrittenBytes()
        self._totals = LedgerTotals(database)
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
            with self._database.transaction(waiting=True):
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
                "payload_bytes = ledger.payload_bytes + excluded.payload_bytes, "
                "message_bytes = ledger.message_bytes + excluded.message_bytes",
                *key, *sizes,
            )  # fmt: skip
        self._database.after_commit(lambda: self._totals.add(counts))

    def message_bytes(self, direction: str) -> int:
        """Return all message bytes in one direction so far."""
        with self._database.lock:  # nothing moves from memory to the table meanwhile
            totals = self._totals.all().items()
            written = sum(size.message for (side, _), size in totals if side == direction)
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
        return frozenset(self._totals.devices())

    def entries(self) -> list[LedgerEntry]:
        """Return the whole ledger in order of round, client, direction and kind."""
        self.flush()
        sql = "SELECT * FROM ledger ORDER BY round, client, direction, kind"
        return [LedgerEntry(*row) for row in self._database.run(sql)]

    def of_round(self, round_: int) -> list[LedgerEntry]:
        """Return a round's entries in order of client, direction and kind."""
        self.flush()
        sql = "SELECT * FROM ledger WHERE round = ? ORDER BY client, direction, kind"
        return [LedgerEntry(*row) for row in self._database.run(sql, round_)]

    def round_bytes(self, round_: int) -> RoundBytes:
        """Return a round's sums as far as they are written; does not write what waits."""
        sql = (
            "SELECT SUM(message_bytes) FILTER (WHERE direction = 'uplink'), "
            "SUM(message_bytes) FILTER (WHERE direction = 'downlink'), "
            "COUNT(*) FILTER (WHERE direction = 'downlink' AND kind = 'transfer') "
            "FROM ledger WHERE round = ?"
        )
        return RoundBytes(*(int(value or 0) for value in self._database.run(sql, round_)[0]))

    def totals(self) -> Totals:
        """Return the bytes written so far by direction and kind."""
        return self._totals.all()

    def device_totals(self) -> dict[str, Totals]:
        """Return the bytes so far of each inference-only device, in order of names."""
        self.flush()
        return self._totals.devices()


def _counts(entry: LedgerEntry) -> Counts:
    key = entry.round, entry.client, entry.direction, entry.kind
    return {key: (entry.payload_bytes, entry.message_bytes)}
