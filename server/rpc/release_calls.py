"""Calls of inference-only devices for the newest released file."""

from __future__ import annotations

import asyncio

from featherfed.proto import federation_pb2 as pb
from featherfed.server.access.names import check_name
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused
from featherfed.server.rpc.callers import Callers
from featherfed.server.rpc.calls import ByteCounter
from featherfed.server.rpc.changes import Changes
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.streams import ChunkSender, chunks
from featherfed.server.storage.records import DownloadKey, LedgerEntry
from featherfed.server.transfers.downloads import Download
from featherfed.server.transfers.framing import framed_size, message_digest
from featherfed.server.transfers.leases import Leases
from featherfed.server.transfers.releases import Offer, Releases


class ReleaseCalls:
    """Sends devices the newest released file as soon as there is one that they do not have."""

    def __init__(
        self,
        coordinator: Coordinator,
        releases: Releases | None,
        callers: Callers,
        bytes_: ByteCounter,
        sender: ChunkSender,
        changes: Changes,
    ) -> None:
        """Without `releases`, devices are refused."""
        self._devices = coordinator.devices
        self._run = coordinator.run
        self._store = coordinator.store
        self._commits = coordinator.commits
        self._releases = releases
        self._callers = callers
        self._bytes = bytes_
        self._sender = sender
        self._changes = changes
        self._leases = Leases()

    async def fetch(
        self, request: pb.FetchReleaseRequest, wait_seconds: float, context: Context
    ) -> None:
        """Send the newest file within `wait_seconds`, or nothing if the device has it already."""
        check_name(request.device)
        self._callers.check_proven(request.device)
        if self._releases is None:
            raise Refused(pb.MISSING_CAPABILITY, "this server releases no files")
        releases, device = self._releases, self._devices.name(request.device)
        offer = await self._changes.poll(
            lambda: self._ask(releases, request, device),
            lambda found: found is not None,
            wait_seconds,
        )
        round_ = self._run.ledger_round
        asked = LedgerEntry(round_, device, "uplink", "release", 0, framed_size(request))
        if offer is None:
            await self._bytes.count(asked)
            return
        release = offer.release
        async with self._leases.acquire(request.device) as lease:
            key = DownloadKey(device, "release", round_, message_digest(release))
            offset = request.offset if request.offset_digest == release.digest else 0
            download = await self._commits.run(Download, self._store, key, offer.data, offset)
            first = pb.ReleaseChunk(release=release, offset=download.begin)
            messages = chunks(pb.ReleaseChunk, first, download.data)
            await self._sender.send(context, lease, messages, download, asked)
            self._devices.hear(device, release.version)

    async def _ask(
        self, releases: Releases, request: pb.FetchReleaseRequest, device: str
    ) -> Offer | None:
        newest = self._run.ledger_round - 1
        self._devices.hear(device)
        offer = await asyncio.wrap_future(releases.offer(request.kind, request.have_digest))
        if offer is None:
            self._devices.hear(device, newest)
        return offer
