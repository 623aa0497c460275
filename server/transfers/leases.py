"""One transfer of a kind per client at a time, each with time limits on everything it waits for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Coroutine, Hashable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused

T = TypeVar("T")

MIN_BYTES_PER_SECOND = 1000.0
"""Bytes per second that a transfer must make overall: an eighth of a link of 64 kbit/s."""


class Patience:
    """Waits for work, until it takes too long or somebody ends the waiting."""

    def __init__(self) -> None:
        self._over: set[asyncio.Future[None]] = set()

    async def wait(self, work: Awaitable[T], until: float) -> T:
        """Return what `work` returns; raise TimeoutError at `until`, or if the waiting is ended.

        `until`: the event loop's time in seconds. `work` is left alone then, and if the caller is
        cancelled: gRPC never frees what a cancelled read or write holds, 64 KiB with a message that
        arrives later (grpc/grpc#43360).
        """
        loop = asyncio.get_running_loop()
        over = loop.create_future()

        def end(done: asyncio.Future[Any] | None = None) -> None:
            if done is not None and not done.cancelled():
                done.exception()  # or asyncio logs one that nobody awaits
            if not over.done():
                over.set_result(None)

        task = asyncio.ensure_future(work)
        task.add_done_callback(end)
        timer = loop.call_at(until, end) if until < math.inf else None
        self._over.add(over)
        try:
            await over
        finally:
            self._over.discard(over)
            if timer is not None:
                timer.cancel()
        if not task.done():
            raise TimeoutError
        return task.result()

    def end(self) -> None:
        """End all waiting."""
        for over in self._over:
            if not over.done():
                over.set_result(None)


class Lease:
    """A transfer's right to go on; a newer transfer of the same client revokes it."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the transfer has ended and stored what it leaves."""
        self._revoked = False
        self._patience = Patience()

    def revoke(self) -> None:
        """Interrupt what the transfer waits for, now or the next time."""
        self._revoked = True
        self._patience.end()

    async def wait_for(self, work: Awaitable[T], until: float) -> T:
        """Return what `work` returns; raise Refused if it takes beyond `until` or is interrupted.

        `until`: the event loop's time in seconds. `work` is then left alone.
        """
        with suppress(TimeoutError):
            return await self._patience.wait(work, 0.0 if self._revoked else until)
        if self._revoked:
            raise Refused(pb.BUSY, "the client has begun anew")
        raise Refused(pb.TOO_SLOW, "the link stands still or is too slow; go on later")


class Leases:
    """Leases by key; a newer transfer takes over, since the older may hang on a dead link."""

    def __init__(self) -> None:
        self._leases: dict[Hashable, Lease] = {}

    def __bool__(self) -> bool:
        """Whether any lease is held."""
        return bool(self._leases)

    @asynccontextmanager
    async def acquire(self, key: Hashable) -> AsyncIterator[Lease]:
        """Acquire the lease; the previous holder has been interrupted and has finished."""
        await self.revoke(key)
        lease = self._leases[key] = Lease()
        try:
            yield lease
        finally:
            del self._leases[key]
            lease.ended.set_result(None)

    async def revoke(self, key: Hashable) -> None:
        """Interrupt the holder of a lease, if there is one, and wait until it has finished."""
        while holder := self._leases.get(key):
            holder.revoke()
            await asyncio.wait({holder.ended})


def now() -> float:
    """Return the event loop's time in seconds."""
    return asyncio.get_running_loop().time()


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; a cancellation of the caller waits until `work` has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
