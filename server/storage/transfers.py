"""Unfinished uploads and downloads, so that a broken transfer can be resumed."""

from __future__ import annotations

from dataclasses import asdict, astuple
from functools import cached_property

from featherfed.server.storage.database import Database
from featherfed.server.storage.records import DownloadKey, StoredChunk, TransferredBytes


class Transfers:
    """Stores how far each client's upload and downloads have come, and what it has uploaded."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @cached_property
    def _uploading(self) -> set[str]:
        """The clients that may have rows in `uploads`; all that do are in it."""
        return {row[0] for row in self._database.run("SELECT DISTINCT client FROM uploads")}

    def may_have_upload(self, client: str) -> bool:
        """Whether anything may be stored of an unfinished update of the client.

        Needs no lock, and nothing of the disk but once.
        """
        return client in self._uploading

    def add_chunk(self, chunk: StoredChunk) -> None:
        """Insert a chunk if it continues the stored part of its update; else ignore it."""
        received = self.received(chunk.client, chunk.round, chunk.digest, chunk.size)
        if chunk.data and chunk.at == received.payload:
            self._uploading.add(chunk.client)  # now: what follows in this transaction sees the row
            self._database.after_commit(lambda: self._uploading.add(chunk.client))
            self._database.run(
                "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", *asdict(chunk).values()
            )

    def received(self, client: str, round_: int, digest: bytes, size: int) -> TransferredBytes:
        """Return how much of an update was received, zero for an update that is not stored."""
        if client not in self._uploading:
            return TransferredBytes()
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
        if client in self._uploading:
            self._database.run("DELETE FROM uploads WHERE client = ?", client)
            self._database.after_commit(lambda: self._uploading.discard(client))

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
            "INSERT INTO downloads VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (client, kind) "
            "DO UPDATE SET round = excluded.round, digest = excluded.digest, "
            "payload_bytes = excluded.payload_bytes, message_bytes = excluded.message_bytes",
            *astuple(download), *sent,
        )  # fmt: skip

    def drop_all(self) -> None:
        """Delete all unfinished transfers: their round is over."""
        self._database.run("DELETE FROM uploads")
        self._database.after_commit(self._uploading.clear)
        self._database.run("DELETE FROM downloads")
