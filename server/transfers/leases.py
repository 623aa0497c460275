"""One transfer of a kind and client at a time, and none that keeps the server waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused

T = TypeVar("T")


class Turn:
    """What one transfer waits with, so that it ends in time or gives way to a newer one."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._given_way = False
        self._limit: asyncio.Timeout | None = None

    def give_way(self) -> None:
        """End what waits now, or will."""
        self._given_way = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(now())

    async def within(self, until: float, work: Awaitable[T]) -> T:
        """Return what `work` returns by the time `until`; raise Refused if it takes longer.

        It goes on then, and nobody waits for it: what a read or write of gRPC's has in hand when it
        is cancelled is never freed, of a message that arrives later all 64 KiB that it was read
        with (grpc/grpc#43360).
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(_look_at)
        if self._given_way:
            until = 0.0
        try:
            async with asyncio.timeout_at(until) as self._limit:
                return await asyncio.shield(task)
        except TimeoutError:
            pass
        finally:
            self._limit = None
        if self._given_way:
            raise Refused(pb.BUSY, "the client has begun anew")
        raise Refused(pb.TOO_SLOW, "the link stands still or is too slow; go on later")


class Turns:
    """Who transfers now; the newest has its turn, since the older may hang on a dead link."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, Turn] = {}

    def __bool__(self) -> bool:
        """Whether anything has the turn."""
        return bool(self._turns)

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[Turn]:
        """Have the turn; whoever had it has ended before."""
        await self.end(key)
        turn = self._turns[key] = Turn()
        try:
            yield turn
        finally:
            del self._turns[key]
            turn.over.set_result(None)

    async def end(self, key: Hashable) -> None:
        """End what has the turn, if anything; what it leaves is written down by then."""
        while older := self._turns.get(key):
            older.give_way()
            await asyncio.wait({older.over})


def now() -> float:
    """Return the event loop's time in seconds."""
    return asyncio.get_running_loop().time()


def _look_at(done: asyncio.Future[Any]) -> None:
    """Take note of an outcome, or asyncio complains that nobody did."""
    if not done.cancelled():
        done.exception()


async def see_through(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; if the caller is cancelled, be so only once `work` has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
