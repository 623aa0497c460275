"""Unfinished uploads: which are admitted, what is stored of them, and where they resume."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused
from featherfed.server.storage.records import LedgerEntry, StoredChunk

DIGEST_BYTES = 8
"""Bytes of a payload's digest in an update's header."""


class PartialUploads:
    """Stores updates as far as they have arrived, so that each can resume there."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._run = coordinator.run
        self._presence = coordinator.presence
        self._updates = coordinator.updates

    def admits_at_once(self, client: str, header: pb.UpdateHeader) -> bool:
        """Whether an upload may go on by what is on disk, and leaves nothing to do. Does not block.

        Nearly all may: they begin at the first byte, and nothing is stored of them. What `admit`
        says of the others needs the store.
        """
        state = self._run.committed.state
        return (
            not header.offset
            and not self._run.store.transfers.may_have_upload(client)
            and self._updates.expects(client, header, state)
            and header.size <= self._updates.max_bytes(client, state)
            and len(header.digest) in (0, DIGEST_BYTES)
        )

    def admit(self, client: str, header: pb.UpdateHeader) -> pb.Outcome:
        """Check an upload by its header; return DUPLICATE or, if it may go on, UNSPECIFIED.

        Raises Refused if it is not wanted, or does not begin where the stored bytes end.
        """
        with self._run.change():
            limit = self._updates.max_bytes(client, self._run.state)
            self._presence.hear(client)
            store = self._run.store
            if self._updates.has(client, header.round):
                return pb.DUPLICATE
            self._updates.check(client, header)
            if header.size > limit:
                raise Refused(
                    pb.TOO_LARGE, f"{header.size} bytes; the round's codec needs {limit} at most"
                )
            if len(header.digest) not in (0, DIGEST_BYTES):
                raise Refused(
                    pb.MALFORMED, f"a digest of {len(header.digest)} bytes, not of {DIGEST_BYTES}"
                )
            if not header.offset:
                store.transfers.drop_upload(client)
            elif header.offset != (stored := self._stored(client, header)):
                raise Refused(pb.BUSY, f"{stored} bytes are here, not {header.offset}; ask again")
            return pb.OUTCOME_UNSPECIFIED

    def _stored(self, client: str, header: pb.UpdateHeader) -> int:
        if not header.digest:
            return 0
        transfers = self._run.store.transfers
        return transfers.received(client, header.round, header.digest, header.size).payload

    def resume_at(self, client: str, header: pb.UpdateHeader) -> int:
        """Return the byte from which on an update is to be sent; its end, if it is not wanted."""
        with self._run.lock:
            self._presence.hear(client)
            try:
                if self._updates.has(client, header.round):
                    return header.size
                self._updates.check(client, header)
            except Refused:
                return header.size
            return self._stored(client, header)

    def store(
        self, client: str, header: pb.UpdateHeader, at: int, data: bytes, message_bytes: int
    ) -> Refused | None:
        """Count bytes as retry, and store them; return why, if their update is not wanted."""
        with self._run.change():
            self.count_retry(client, header, len(data), message_bytes)
            try:
                self._updates.check(client, header)
            except Refused as refusal:
                return refusal.with_traceback(None)
            key = header.round, header.digest, header.size
            chunk = StoredChunk(client, at, *key, message_bytes, data)
            self._run.store.transfers.add_chunk(chunk)
            return None

    def payload(self, client: str, header: pb.UpdateHeader) -> bytes | None:
        """Return the stored bytes of an update, None if it was accepted before.

        Raises Refused if it is not expected now: a round that closes drops them.
        """
        with self._run.lock:
            if self._updates.has(client, header.round):
                return None
            self._updates.check(client, header)
            return self._run.store.transfers.received_payload(client)

    def drop(self, client: str) -> None:
        """Delete the stored bytes of a client's update."""
        self._run.store.transfers.drop_upload(client)

    def count_retry(
        self, client: str, header: pb.UpdateHeader, size: int, message_bytes: int
    ) -> None:
        """Count bytes of an update that was not accepted, or not yet, as retry."""
        round_ = self._run.ledger_round_of(header.round)
        entry = LedgerEntry(round_, client, "uplink", "retry", size, message_bytes)
        self._run.store.ledger.count(entry)
