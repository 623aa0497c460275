"""Sending data in chunks to peers that may be slow, stop reading, or hang up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from featherfed.server.errors import Refused
from featherfed.server.rpc.calls import StalledWrite
from featherfed.server.rpc.context import Context
from featherfed.server.storage.group_commit import GroupCommit
from featherfed.server.storage.records import LedgerEntry
from featherfed.server.transfers.downloads import COUNTED_CHUNK_BYTES, Download
from featherfed.server.transfers.framing import framed_size
from featherfed.server.transfers.leases import MIN_BYTES_PER_SECOND, Lease, now, uninterrupted

CHUNK_BYTES = 64 * 1024
"""Data bytes of one message."""


class ChunkSender:
    """Sends messages within the time limits that a peer has to read them."""

    def __init__(self, commits: GroupCommit, stall_seconds: float) -> None:
        self._commits = commits
        self._stall_seconds = stall_seconds

    async def send(
        self,
        context: Context,
        lease: Lease,
        chunks: Iterable[Any],
        download: Download,
        asked: LedgerEntry,
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        """Send a download's chunks, and count what was sent however the call ends.

        `asked`: the request's own bytes. `on_sent` is called after every chunk.
        """
        try:
            for message in chunks:
                await self.write(context, lease, message)
                on_sent()
                download.add(len(message.data), framed_size(message))
                if download.uncounted >= COUNTED_CHUNK_BYTES:
                    await uninterrupted(self._count(download))
        finally:
            await self._commits.run(download.count, asked, last=True)

    async def _count(self, download: Download) -> None:
        download.settle(await self._commits.run(download.count))

    async def write(self, context: Context, lease: Lease, message: Any) -> None:
        """Send one message; raise StalledWrite if the peer does not take it in time."""
        until = now() + self._stall_seconds + len(message.data) / MIN_BYTES_PER_SECOND
        write = asyncio.ensure_future(context.write(message))
        try:
            await lease.wait_for(write, until)
        except Refused as refusal:
            raise StalledWrite(refusal, write) from None


def pieces(data: bytes | memoryview) -> Iterator[bytes]:
    """Yield data in pieces of at most CHUNK_BYTES; empty data give one empty piece."""
    for at in range(0, len(data) or 1, CHUNK_BYTES):
        yield bytes(data[at : at + CHUNK_BYTES])


def chunks(make: Callable[..., Any], first: Any, data: bytes | memoryview) -> Iterator[Any]:
    """Yield data in messages built by `make(data=...)`; the first has the fields of `first` too."""
    for number, piece in enumerate(pieces(data)):
        message = make(data=piece)
        if not number:
            message.MergeFrom(first)
        yield message
