"""A gRPC server that survives the name of a method that is no text.

grpc.aio decodes the name of every call as UTF-8 in the loop that accepts calls, and if that fails
the loop ends: one call, and the server is deaf for good. Our methods are registered by name, so
calls of others are answered here, without a look at the name.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

MAX_ANSWERS = 256
"""Calls of unknown methods that are answered at the same time; others are cut off."""


def create_grpc_server(**arguments: Any) -> Any:
    """Return `grpc.aio.server(**arguments)`, which serves registered methods alone."""
    accepts, cygrpc.AioServer = cygrpc.AioServer, _RegisteredMethodsServer
    try:
        return grpc.aio.server(**arguments)
    finally:
        cygrpc.AioServer = accepts


class _RegisteredMethodsServer(cygrpc.AioServer):  # type: ignore[misc]
    """The accepting half of gRPC's server, but for calls of unknown methods."""

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """Return a future of the next call of a method; of unknown ones (None), it never comes."""
        if method is not None:
            found: asyncio.Future[Any] = super()._make_request_call_future(method)
            return found
        return asyncio.ensure_future(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        """Refuse calls of unknown methods until the server stops, which raises an error of gRPC."""
        answers: set[asyncio.Task[None]] = set()
        while True:
            call = await self._request_call()
            if len(answers) < MAX_ANSWERS:
                answers.add(answer := asyncio.create_task(_refuse(call)))
                answer.add_done_callback(answers.discard)


async def _refuse(call: Any) -> None:
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    except grpc.aio.AbortError:
        pass
    except Exception as error:  # the peer has gone
        log.debug("a call of an unknown method broke off: %s", error)
