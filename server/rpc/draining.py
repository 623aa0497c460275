"""Shutting down gracefully: new calls are refused, uploads under way may end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health

from featherfed.server.rpc.changes import Changes
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.handlers import Requests
from featherfed.server.transfers.leases import now
from featherfed.server.transfers.uploads import Uploads

LAST_SECONDS = 1.0
"""How long a call that begins while the server goes down may wait for its caller."""
TOLD_SECONDS = 0.1
"""Time in which those who watch the server's health are told that it goes down."""

GOING_DOWN = "the server is going down, try again; nothing is lost"


class Draining:
    """Ends a server's work without cutting off uploads."""

    def __init__(self, changes: Changes, uploads: Uploads) -> None:
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self.begun = False
        """Whether new calls are refused."""
        self._changes = changes
        self._uploads = uploads
        self._limits: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """Limit the block to `seconds`, or to now once the server goes down, by TimeoutError."""
        async with asyncio.timeout(LAST_SECONDS if self.begun else seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def drain(self, grace: float) -> None:
        """Refuse new calls, release those that wait, and give uploads `grace` seconds to end.

        Safe to call again.
        """
        if not self.begun:
            self.begun = True
            self._changes.close()
            await self.health.enter_graceful_shutdown()
            await asyncio.sleep(TOLD_SECONDS)
            for limit in self._limits:
                if not limit.expired():
                    limit.reschedule(now())
        until = now() + grace
        while self._uploads.under_way and now() < until:
            await asyncio.sleep(0.05)


class DrainingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses new calls of one service once draining has begun; health checks go on."""

    def __init__(self, draining: Draining, service: str) -> None:
        self._draining = draining
        self._prefix = f"/{service}/"

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the call's handler, or one that refuses it."""
        if not self._draining.begun or not details.method.startswith(self._prefix):
            return await continuation(details)

        async def refuse(requests: Requests, context: Context) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, GOING_DOWN)

        return grpc.stream_stream_rpc_method_handler(refuse)
