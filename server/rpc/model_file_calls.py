"""Calls of clients for files of the final model, to measure and to evaluate."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.model_files import OfferedFile
from featherfed.server.rpc.callers import Callers
from featherfed.server.rpc.calls import ByteCounter
from featherfed.server.rpc.changes import Changes
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.streams import ChunkSender, chunks
from featherfed.server.storage.records import LedgerEntry
from featherfed.server.transfers.framing import framed_size
from featherfed.server.transfers.leases import Leases, uninterrupted

MAX_WAIT_SECONDS = 5
"""The longest that a call waits: patience with other clients may be over without any change."""


class ModelFileCalls:
    """Sends clients a file of the final model as soon as there is one."""

    def __init__(
        self,
        coordinator: Coordinator,
        callers: Callers,
        bytes_: ByteCounter,
        sender: ChunkSender,
        changes: Changes,
    ) -> None:
        self._coordinator = coordinator
        self._callers = callers
        self._bytes = bytes_
        self._sender = sender
        self._changes = changes
        self._leases = Leases()
        # One thread: making a file takes long, and many clients ask at once.
        self._worker = ThreadPoolExecutor(1, "model files")

    async def fetch(self, request: pb.FetchModelFileRequest, client: str, context: Context) -> None:
        """Send the file within `wait_seconds`, or nothing if there is none yet."""
        files, loop = self._coordinator.model_files, asyncio.get_running_loop()

        async def ask() -> OfferedFile | None:
            return await loop.run_in_executor(self._worker, files.offer, client, request)

        round_, size = self._coordinator.run.ledger_round, 0
        try:
            with self._callers.polling(client):
                seconds = min(request.wait_seconds, MAX_WAIT_SECONDS)
                offer = await self._changes.poll(ask, lambda found: found is not None, seconds)
            if offer is None:
                return
            same = request.offset_digest == offer.description.digest
            begin = min(request.offset, len(offer.data)) if same else 0
            first = pb.ModelFileChunk(file=offer.description, offset=begin)
            async with self._leases.acquire((client, "file")) as lease:
                for message in chunks(pb.ModelFileChunk, first, offer.data[begin:]):
                    await self._sender.write(context, lease, message)
                    self._coordinator.presence.hear(client)
                    size += framed_size(message)
        finally:
            asked = LedgerEntry(round_, client, "uplink", "control", 0, framed_size(request))
            sent = LedgerEntry(round_, client, "downlink", "control", 0, size)
            await uninterrupted(self._bytes.count(asked, sent))
