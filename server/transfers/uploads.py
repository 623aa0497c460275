"""Receiving updates within the server's limits, whatever clients send or fail to send."""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.updates import DecodedUpdate
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
        self._commits = coordinator.commits
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

        `stream` yields its first message in time, or raises Refused.
        Raises Refused as long as the client is not known; later refusals are in what it returns.
        """
        stream = aiter(stream)
        first = await anext(stream, None)
        if first is None or not first.HasField("header"):
            raise Refused(pb.MALFORMED, "the first chunk must hold the header")
        header = first.header
        client = await identify(header.session)
        async with self._leases.acquire(client) as lease:
            round_ = self._run.ledger_round_of(header.round)
            upload = _Upload(client, header)
            try:
                reply = await self._receive(upload, lease, first, stream)
            except Refused as refusal:
                await uninterrupted(self._refuse(upload, refusal, round_))
                if refusal.reason in TRANSIENT:
                    return Received(client, round_, refusal=refusal.with_traceback(None))
                reply = pb.SubmitReply(
                    outcome=pb.REFUSED, reason=refusal.reason, detail=refusal.detail
                )
            except BaseException:
                with suppress(Refused):
                    await uninterrupted(self._store(upload))
                raise
            return Received(client, round_, reply)

    async def resume_at(self, client: str, header: pb.UpdateHeader) -> int:
        """Return the byte at which an interrupted update resumes: its end, if it is not wanted.

        The client then sends the header alone, and the reply says why. Raises Refused if there is
        no room for the rest now.
        """
        await self._leases.revoke(client)
        offset = await self._commits.run(self._partial.resume_at, client, header)
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
        outcome = pb.OUTCOME_UNSPECIFIED
        if not self._partial.admits_at_once(upload.client, header):
            outcome = await self._commits.run(self._partial.admit, upload.client, header)
        if outcome != pb.DUPLICATE:
            with self._queue.reserve(header.size - header.offset):
                await self._collect(upload, lease, rest)
                # Also if the client hangs up: the update may already be journaled.
                outcome = await uninterrupted(self._submit(upload))
        if outcome == pb.DUPLICATE:
            await uninterrupted(self._count_retry(upload))
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
        while upload.size < upload.header.size:
            if (chunk := await self._next(lease, stream, until)) is None:
                await asyncio.sleep(HANG_UP_SECONDS)
                detail = f"{upload.header.size} bytes announced, {upload.size} sent"
                raise Refused(pb.MALFORMED, detail)
            if not upload.add(chunk):
                raise Refused(pb.MALFORMED, "a chunk without data")
            self._presence.hear(upload.client)
            if upload.held >= STORED_CHUNK_BYTES:
                await uninterrupted(self._store(upload))

    async def _submit(self, upload: _Upload) -> pb.Outcome:
        with self._telemetry.acknowledged.time():
            loop, client, header = asyncio.get_running_loop(), upload.client, upload.header
            decoded = await loop.run_in_executor(self._decoders, self._decode, upload)
            outcome = await self._commits.run(
                self._updates.accept, client, header, decoded, upload.message_bytes
            )
        if outcome == pb.ACCEPTED:
            upload.forget()  # the ledger has counted it
        return outcome

    def _decode(self, upload: _Upload) -> DecodedUpdate | None:
        client, header, payload = upload.client, upload.header, upload.data
        if upload.at:
            if (stored := self._partial.payload(client, header)) is None:
                return None
            payload = stored + payload
            # The digest says that the parts belong together; a whole one has its checksum.
            if header.digest and hashlib.sha256(payload).digest()[:DIGEST_BYTES] != header.digest:
                raise Refused(pb.MALFORMED, "the payload is not the one that its digest announced")
        return self._updates.decode(client, header, payload)

    async def _store(self, upload: _Upload) -> None:
        """Store the bytes in memory for the client's next call; raise Refused if not wanted."""
        part = upload.take()
        if part.message_bytes:
            store = self._partial.store
            if refusal := await self._commits.run(store, upload.client, upload.header, *part):
                raise refusal

    async def _count_retry(self, upload: _Upload) -> None:
        """Count the bytes in memory as retry."""
        part = upload.take()
        await self._commits.run(
            self._partial.count_retry,
            upload.client, upload.header, len(part.data), part.message_bytes,
        )  # fmt: skip

    async def _refuse(self, upload: _Upload, refusal: Refused, round_: int) -> None:
        """Record a refusal; store what arrived if the client may send the rest later."""
        if refusal.reason in TRANSIENT:
            with suppress(Refused):
                await self._store(upload)
        else:
            await self._commits.run(self._drop, upload.client, upload.header, upload.take())
        self._refusals.record(upload.client, refusal, round_)

    def _drop(self, client: str, header: pb.UpdateHeader, part: _Part) -> None:
        """Count bytes of an update that is not wanted; delete those that are stored of it."""
        self._partial.count_retry(client, header, len(part.data), part.message_bytes)
        self._partial.drop(client)


class _Part(NamedTuple):
    """Bytes of an update, from byte `at` on, and the wire bytes of the messages with them."""

    at: int
    data: bytes
    message_bytes: int


class _Upload:
    """One update as far as it has arrived.

    `held`: how many bytes are in memory, from byte `at` of the payload on; those before are stored.
    `message_bytes`: wire bytes of the messages that carried them.
    """

    def __init__(self, client: str, header: pb.UpdateHeader) -> None:
        self.client = client
        self.header = header
        self.at = header.offset
        self.held = 0
        self.message_bytes = 0
        self._data = io.BytesIO()  # a bytearray would be moved at every chunk

    @property
    def size(self) -> int:
        return self.at + self.held

    @property
    def data(self) -> bytes:
        """The bytes in memory."""
        return self._data.getvalue()

    def add(self, chunk: pb.UpdateChunk) -> int:
        """Add a chunk's bytes; return how many they are."""
        added = self._data.write(chunk.data)
        self.held += added
        self.message_bytes += framed_size(chunk)
        if self.size > self.header.size:
            raise Refused(pb.MALFORMED, f"more than the {self.header.size} bytes announced")
        return added

    def take(self) -> _Part:
        """Return the bytes in memory and forget them: they are being stored or counted."""
        part = _Part(self.at, self.data, self.message_bytes)
        self.forget()
        return part

    def forget(self) -> None:
        """Forget the bytes in memory."""
        self.at, self.held, self.message_bytes = self.size, 0, 0
        self._data = io.BytesIO()
