"""Unfinished uploads and downloads, so that a broken transfer can be resumed."""

from __future__ import annotations

from dataclasses import asdict, astuple

from featherfed.server.storage.database import Database
from featherfed.server.storage.records import DownloadKey, StoredChunk, TransferredBytes


class Transfers:
    """Stores how far each client's upload and downloads have come, and what it has uploaded."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_chunk(self, chunk: StoredChunk) -> None:
        """Insert a chunk if it continues the stored part of its update; else ignore it."""
        received = self.received(chunk.client, chunk.round, chunk.digest, chunk.size)
        if chunk.data and chunk.at == received.payload:
            self._database.run(
                "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", *asdict(chunk).values()
            )

    def received(self, client: str, round_: int, digest: bytes, size: int) -> TransferredBytes:
        """Return how much of an update was received, zero for an update that is not stored."""
        rows = self._database.run(
            "SELECT coalesce(sum(length(data)), 0), coalesce(sum(message_bytes), 0) FROM uploads "
            "WHERE client = ? AND round = ? AND digest = ? AND size = ?",
            client, round_, digest, size,
        )  # fmt: skip
        return TransferredBytes(*rows[0])

    def received_payload(self, client: str) -> bytes:
        """Return the bytes received of a client's unfinished update."""
        rows = self._database.run("SELECT data FROM uploads WHERE client = ? ORDER BY at", client)
        return b"".join(row[0] for row in rows)

    def drop_upload(self, client: str) -> None:
        """Delete what was received of a client's unfinished update."""
        self._database.run("DELETE FROM uploads WHERE client = ?", client)

    def sent(self, download: DownloadKey) -> TransferredBytes:
        """Return how much of a download was sent, zero for one that is not stored."""
        rows = self._database.run(
            "SELECT payload_bytes, message_bytes FROM downloads "
            "WHERE client = ? AND kind = ? AND round = ? AND digest = ?",
            *astuple(download),
        )  # fmt: skip
        return TransferredBytes(*rows[0]) if rows else TransferredBytes()

    def save_sent(self, download: DownloadKey, sent: TransferredBytes) -> None:
        """Record how much of a download was sent, in place of the client's last of its kind."""
        self._database.run(
            "INSERT OR REPLACE INTO downloads VALUES (?, ?, ?, ?, ?, ?)", *astuple(download), *sent
        )

    def drop_all(self) -> None:
        """Delete all unfinished transfers: their round is over."""
        self._database.run("DELETE FROM uploads")
        self._database.run("DELETE FROM downloads")
