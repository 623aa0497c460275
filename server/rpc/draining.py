"""Shutting down gracefully: new calls are refused, uploads under way may end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health

from featherfed.server.rpc.changes import Changes
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.handlers import Requests
from featherfed.server.transfers.leases import Patience, now
from featherfed.server.transfers.uploads import Uploads

T = TypeVar("T")

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
        self._patience = Patience()

    async def within(self, seconds: float, work: Awaitable[T]) -> T:
        """Return what `work` returns; raise TimeoutError after `seconds`, or once draining begins.

        `work` is left alone then; see `Patience`.
        """
        until = now() + (LAST_SECONDS if self.begun else seconds)
        return await self._patience.wait(work, until)

    async def drain(self, grace: float) -> None:
        """Refuse new calls, release those that wait, and give uploads `grace` seconds to end.

        Safe to call again.
        """
        if not self.begun:
            self.begun = True
            self._changes.close()
            await self.health.enter_graceful_shutdown()
            await asyncio.sleep(TOLD_SECONDS)
            self._patience.end()
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
