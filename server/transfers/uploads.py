"""Updates on their way in: collected, held to limits, kept where they break off. Knows no gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.transfers.framing import framed_size
from featherfed.server.transfers.leases import Turn, Turns, now, see_through

PIECE_BYTES = 2**20
"""An upload is written down in pieces of this size, so no more of it is in memory."""

SLOWEST = 1000.0
"""Bytes per second that an upload must make on the whole: an eighth of a link of 64 kbit/s."""

GRACE_SECONDS = 30.0
"""What it gets on top of that."""

DECODERS = 2
"""Updates that are put together and decoded at the same time."""

HANG_UP_SECONDS = 1.0
"""A link that is cut can look like an end of the stream for a moment, before the call ends."""

DIGEST_BYTES = 8

TRANSIENT = frozenset({pb.BUSY, pb.TOO_SLOW, pb.STORAGE})
"""Refusals that say nothing against the update: the client is to send the rest later."""


class Uploads:
    """The uploads under way, one a client; safe against what clients send and do not send."""

    def __init__(self, coordinator: Coordinator, telemetry: Telemetry) -> None:
        """Hold uploads to the limits of the coordinator's settings."""
        self._coordinator = coordinator
        self._telemetry = telemetry
        self._limits = coordinator.settings.limits
        self._turns = Turns()
        self._queued = 0
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")

    @property
    def under_way(self) -> bool:
        """Whether any upload is."""
        return bool(self._turns)

    async def receive(
        self, stream: AsyncIterator[pb.UpdateChunk], who: Callable[[int], Awaitable[str]]
    ) -> tuple[str, int, pb.SubmitReply]:
        """Receive one update; return the client, the round that its bytes count in, the answer.

        `who` gives the client of a session, or raises Refused. Raises Refused for what the client
        should try again later, and if it is not known.
        """
        stream = aiter(stream)
        first = await self._next(Turn(), stream)
        if first is None or not first.HasField("header"):
            raise Refused(pb.MALFORMED, "the first chunk must hold the header")
        client = await who(first.header.session)
        async with self._turns.take(client) as turn:
            round_ = self._coordinator.ledger_round_of(first.header)
            upload = _Upload(client, first.header)
            return client, round_, await self._take(upload, turn, first, stream)

    async def offset(self, client: str, header: pb.UpdateHeader) -> int:
        """Return where an update that broke off goes on: at its end, if no more of it is wanted.

        The header alone then says why. Raises Refused if there is no room for the rest now.
        """
        await self._turns.end(client)
        offset = await asyncio.to_thread(self._coordinator.upload_offset, client, header)
        self._check_room(header.size - offset)
        return offset

    async def _next(
        self, turn: Turn, stream: AsyncIterator[pb.UpdateChunk], until: float = math.inf
    ) -> pb.UpdateChunk | None:
        """Return the next chunk, None at the end; raise Refused if it does not come in time."""
        soon = now() + self._limits.stall_seconds
        return await turn.within(min(soon, until), anext(stream, None))

    async def _take(
        self,
        upload: _Upload,
        turn: Turn,
        first: pb.UpdateChunk,
        rest: AsyncIterator[pb.UpdateChunk],
    ) -> pb.SubmitReply:
        coordinator, client, header = self._coordinator, upload.client, upload.header
        try:
            upload.add(first)
            outcome = await asyncio.to_thread(coordinator.admit_upload, client, header)
            if outcome != pb.DUPLICATE:
                with self._room(header.size - header.offset):
                    await self._collect(upload, turn, rest)
                    # Seen through also if the client hangs up: it may be journaled.
                    outcome = await see_through(self._submit(upload))
            if outcome == pb.DUPLICATE:
                await asyncio.to_thread(upload.count, coordinator)
            return pb.SubmitReply(outcome=outcome)
        except Refused as refusal:
            await see_through(asyncio.to_thread(self._refuse, upload, refusal))
            if refusal.reason in TRANSIENT:
                raise
            return pb.SubmitReply(outcome=pb.REFUSED, reason=refusal.reason, detail=refusal.detail)
        except BaseException:
            with suppress(Refused):
                await see_through(asyncio.to_thread(upload.keep, coordinator))
            raise

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Have `size` bytes of the queue; raise Refused if it is full."""
        self._check_room(size)
        self._queued += size
        try:
            yield
        finally:
            self._queued -= size

    def _check_room(self, size: int) -> None:
        """Raise Refused unless there is room; one upload alone has it, whatever its size."""
        if self._queued and size and self._queued + size > self._limits.queued_bytes:
            raise Refused(pb.BUSY, f"updates of {self._queued} bytes are coming in; wait a little")

    async def _collect(
        self, upload: _Upload, turn: Turn, stream: AsyncIterator[pb.UpdateChunk]
    ) -> None:
        missing = upload.header.size - upload.size
        until = now() + GRACE_SECONDS + missing / SLOWEST
        while (chunk := await self._next(turn, stream, until)) is not None:
            if not chunk.data:
                raise Refused(pb.MALFORMED, "a chunk without data")
            upload.add(chunk)
            self._coordinator.hear(upload.client)
            if len(upload.data) >= PIECE_BYTES:
                await see_through(asyncio.to_thread(upload.keep, self._coordinator))
        if upload.size < upload.header.size:
            await asyncio.sleep(HANG_UP_SECONDS)
            raise Refused(pb.MALFORMED, f"{upload.header.size} bytes announced, {upload.size} sent")

    async def _submit(self, upload: _Upload) -> pb.Outcome:
        with self._telemetry.acknowledged.time():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoders, self._submit_whole, upload)

    def _submit_whole(self, upload: _Upload) -> pb.Outcome:
        payload = bytes(upload.data)
        if upload.at:
            payload = self._coordinator.store.kept_payload(upload.client) + payload
        digest = upload.header.digest
        if digest and hashlib.sha256(payload).digest()[:DIGEST_BYTES] != digest:
            raise Refused(pb.MALFORMED, "the payload is not the one that its digest announced")
        outcome = self._coordinator.submit(
            upload.client, upload.header, payload, upload.message_bytes
        )
        if outcome == pb.ACCEPTED:
            upload.forget()  # it is in the ledger
        return outcome

    def _refuse(self, upload: _Upload, refusal: Refused) -> None:
        """Write down what was refused, and keep what came of it if that is worth it."""
        coordinator, client = self._coordinator, upload.client
        if refusal.reason in TRANSIENT:
            with suppress(Refused):
                upload.keep(coordinator)
        else:
            upload.count(coordinator)
            coordinator.store.drop_pieces(client)
        coordinator.record_refusal(client, refusal, coordinator.ledger_round_of(upload.header))


class _Upload:
    """One update as far as it came; `data` begin `at` bytes after its beginning."""

    def __init__(self, client: str, header: pb.UpdateHeader) -> None:
        self.client = client
        self.header = header
        self.at = header.offset
        self.data = bytearray()
        self.message_bytes = 0

    @property
    def size(self) -> int:
        return self.at + len(self.data)

    def add(self, chunk: pb.UpdateChunk) -> None:
        self.data += chunk.data
        self.message_bytes += framed_size(chunk)
        if self.size > self.header.size:
            raise Refused(pb.MALFORMED, f"more than the {self.header.size} bytes announced")

    def keep(self, coordinator: Coordinator) -> None:
        """Write down what came since the last time, for this call or the client's next."""
        at, data, message_bytes = self.at, bytes(self.data), self.message_bytes
        self.forget()
        if message_bytes:
            coordinator.keep_piece(self.client, self.header, at, data, message_bytes)

    def count(self, coordinator: Coordinator) -> None:
        """Count what came since the last time as retry."""
        size, message_bytes = len(self.data), self.message_bytes
        self.forget()
        coordinator.count_retry(self.client, self.header, size, message_bytes)

    def forget(self) -> None:
        """Go on with what comes from now on."""
        self.at, self.data, self.message_bytes = self.size, bytearray(), 0
