"""Receiving updates within the server's limits, whatever clients send or fail to send."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.transfers.framing import framed_size
from featherfed.server.transfers.leases import (
    MIN_BYTES_PER_SECOND,
    Lease,
    Leases,
    now,
    uninterrupted,
)
from featherfed.server.transfers.partial_uploads import DIGEST_BYTES, PartialUploads
from featherfed.server.transfers.receive_queue import ReceiveQueue

STORED_CHUNK_BYTES = 2**20
"""An upload is stored in chunks of this size, so no more of it is in memory."""

GRACE_SECONDS = 30.0
"""Time that an upload gets beside what its bytes take at MIN_BYTES_PER_SECOND."""

DECODERS = 2
"""Updates that are decoded at the same time."""

HANG_UP_SECONDS = 1.0
"""How long an early end of the stream may precede the call's cancellation when a link is cut."""

TRANSIENT = frozenset({pb.BUSY, pb.TOO_SLOW, pb.STORAGE})
"""Refusals for reasons that pass: the client is to send the rest of its update later."""


@dataclass(frozen=True)
class Received:
    """What became of an upload of a known client.

    Exactly one of `reply` and `refusal` is given. The refusal is recorded already; it is to end the
    call, and the client to try again. `round`: the round that the bytes count in.
    """

    client: str
    round: int
    reply: pb.SubmitReply | None = None
    refusal: Refused | None = None


class Uploads:
    """Receives one upload per client at a time, and hands whole updates to the coordinator."""

    def __init__(self, coordinator: Coordinator, telemetry: Telemetry) -> None:
        """Hold uploads to the limits of the coordinator's settings."""
        self._run = coordinator.run
        self._presence = coordinator.presence
        self._updates = coordinator.updates
        self._refusals = coordinator.refusals
        self._partial = PartialUploads(coordinator)
        self._telemetry = telemetry
        self._limits = coordinator.settings.limits
        self._leases = Leases()
        self._queue = ReceiveQueue(self._limits.queued_bytes)
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")

    @property
    def under_way(self) -> bool:
        """Whether any upload is being received."""
        return bool(self._leases)

    async def receive(
        self, stream: AsyncIterator[pb.UpdateChunk], identify: Callable[[int], Awaitable[str]]
    ) -> Received:
        """Receive one update; `identify` returns the client of a session, or raises Refused.

        Raises Refused as long as the client is not known; later refusals are in what it returns.
        """
        stream = aiter(stream)
        first = await self._next(Lease(), stream)
        if first is None or not first.HasField("header"):
            raise Refused(pb.MALFORMED, "the first chunk must hold the header")
        header = first.header
        client = await identify(header.session)
        async with self._leases.acquire(client) as lease:
            round_ = self._run.ledger_round_of(header.round)
            upload = _Upload(client, header, self._partial)
            try:
                reply = await self._receive(upload, lease, first, stream)
            except Refused as refusal:
                await uninterrupted(asyncio.to_thread(self._refuse, upload, refusal))
                if refusal.reason in TRANSIENT:
                    return Received(client, round_, refusal=refusal.with_traceback(None))
                reply = pb.SubmitReply(
                    outcome=pb.REFUSED, reason=refusal.reason, detail=refusal.detail
                )
            except BaseException:
                with suppress(Refused):
                    await uninterrupted(asyncio.to_thread(upload.store))
                raise
            return Received(client, round_, reply)

    async def resume_at(self, client: str, header: pb.UpdateHeader) -> int:
        """Return the byte at which an interrupted update resumes: its end, if it is not wanted.

        The client then sends the header alone, and the reply says why. Raises Refused if there is
        no room for the rest now.
        """
        await self._leases.revoke(client)
        offset = await asyncio.to_thread(self._partial.resume_at, client, header)
        self._queue.check(header.size - offset)
        return offset

    async def _receive(
        self,
        upload: _Upload,
        lease: Lease,
        first: pb.UpdateChunk,
        rest: AsyncIterator[pb.UpdateChunk],
    ) -> pb.SubmitReply:
        header = upload.header
        upload.add(first)
        outcome = await asyncio.to_thread(self._partial.admit, upload.client, header)
        if outcome != pb.DUPLICATE:
            with self._queue.reserve(header.size - header.offset):
                await self._collect(upload, lease, rest)
                # Also if the client hangs up: the update may already be journaled.
                outcome = await uninterrupted(self._submit(upload))
        if outcome == pb.DUPLICATE:
            await asyncio.to_thread(upload.count_retry)
        return pb.SubmitReply(outcome=outcome)

    async def _next(
        self, lease: Lease, stream: AsyncIterator[pb.UpdateChunk], until: float = math.inf
    ) -> pb.UpdateChunk | None:
        """Return the next chunk, None at the end; raise Refused if it does not come in time."""
        soon = now() + self._limits.stall_seconds
        return await lease.wait_for(anext(stream, None), min(soon, until))

    async def _collect(
        self, upload: _Upload, lease: Lease, stream: AsyncIterator[pb.UpdateChunk]
    ) -> None:
        missing = upload.header.size - upload.size
        until = now() + GRACE_SECONDS + missing / MIN_BYTES_PER_SECOND
        while (chunk := await self._next(lease, stream, until)) is not None:
            if not chunk.data:
                raise Refused(pb.MALFORMED, "a chunk without data")
            upload.add(chunk)
            self._presence.hear(upload.client)
            if len(upload.data) >= STORED_CHUNK_BYTES:
                await uninterrupted(asyncio.to_thread(upload.store))
        if upload.size < upload.header.size:
            await asyncio.sleep(HANG_UP_SECONDS)
            raise Refused(pb.MALFORMED, f"{upload.header.size} bytes announced, {upload.size} sent")

    async def _submit(self, upload: _Upload) -> pb.Outcome:
        with self._telemetry.acknowledged.time():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoders, self._submit_whole, upload)

    def _submit_whole(self, upload: _Upload) -> pb.Outcome:
        with self._run.lock:  # a round that closes drops the stored bytes of its updates
            self._updates.check(upload.client, upload.header)
            payload = upload.payload()
        digest = upload.header.digest
        if digest and hashlib.sha256(payload).digest()[:DIGEST_BYTES] != digest:
            raise Refused(pb.MALFORMED, "the payload is not the one that its digest announced")
        outcome = self._updates.submit(upload.client, upload.header, payload, upload.message_bytes)
        if outcome == pb.ACCEPTED:
            upload.clear()  # the ledger has counted it
        return outcome

    def _refuse(self, upload: _Upload, refusal: Refused) -> None:
        """Record a refusal; store what arrived if the client may send the rest later."""
        if refusal.reason in TRANSIENT:
            with suppress(Refused):
                upload.store()
        else:
            upload.count_retry()
            self._partial.drop(upload.client)
        round_ = self._run.ledger_round_of(upload.header.round)
        self._refusals.record(upload.client, refusal, round_)


class _Upload:
    """One update as far as it has arrived.

    `data`: the bytes in memory, from byte `at` of the payload on; those before are stored.
    `message_bytes`: wire bytes of the messages that carried `data`.
    """

    def __init__(self, client: str, header: pb.UpdateHeader, partial: PartialUploads) -> None:
        self.client = client
        self.header = header
        self.at = header.offset
        self.data = bytearray()
        self.message_bytes = 0
        self._partial = partial

    @property
    def size(self) -> int:
        return self.at + len(self.data)

    def payload(self) -> bytes:
        """Return the whole payload, the stored bytes included."""
        stored = self._partial.payload(self.client) if self.at else b""
        return stored + bytes(self.data)

    def add(self, chunk: pb.UpdateChunk) -> None:
        self.data += chunk.data
        self.message_bytes += framed_size(chunk)
        if self.size > self.header.size:
            raise Refused(pb.MALFORMED, f"more than the {self.header.size} bytes announced")

    def store(self) -> None:
        """Store the bytes in memory, for this call or the client's next."""
        at, data, message_bytes = self.at, bytes(self.data), self.message_bytes
        self.clear()
        if message_bytes:
            self._partial.store(self.client, self.header, at, data, message_bytes)

    def count_retry(self) -> None:
        """Count the bytes in memory as retry."""
        size, message_bytes = len(self.data), self.message_bytes
        self.clear()
        self._partial.count_retry(self.client, self.header, size, message_bytes)

    def clear(self) -> None:
        """Forget the bytes in memory: they are stored or counted."""
        self.at, self.data, self.message_bytes = self.size, bytearray(), 0
