"""Reading what callers send: in time, and refusing what is no message of the method.

gRPC itself would wait for ever, answer UNKNOWN, and log a traceback as for a bug of the server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.server.rpc.context import Context, Refuse
from featherfed.server.rpc.draining import Draining
from featherfed.server.rpc.handlers import Call, CheckedRequests, Requests, handler_of, method_of
from featherfed.server.transfers.leases import Patience
from featherfed.server.transfers.uploads import HANG_UP_SECONDS

WATCH_SECONDS = 300.0
"""How long a call of health checking or reflection may last; its caller may begin another."""
MAX_WATCH_BYTES = 1024
"""Bytes of a request of theirs."""

_UNPARSABLE = object()


class ParsingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Gives methods requests that parse; the last interceptor, which meets the methods as is."""

    def __init__(
        self, service: str, refuse: Refuse, draining: Draining, stall_seconds: float
    ) -> None:
        """`service`: the full name of ours, whose calls end by themselves.

        `stall_seconds`: how long a caller may take to send its first message.
        """
        self._prefix = f"/{service}/"
        self._refuse = refuse
        self._draining = draining
        self._stall_seconds = stall_seconds
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the method's handler with the reading before it."""
        if details.method in self._handlers:
            return self._handlers[details.method]
        handler = await continuation(details)
        if handler is None:
            return None
        ours = details.method.startswith(self._prefix)
        call, most = self._reading(handler, ours), None
        if not ours:
            call, most = self._ending(call), MAX_WATCH_BYTES
        made = handler_of(call, handler, _parser(handler.request_deserializer, most))
        self._handlers[details.method] = made
        return made

    def _reading(self, handler: Any, ours: bool) -> Call:
        method = method_of(handler)

        async def call(given: Requests, context: Context) -> Any:
            requests = given if isinstance(given, CheckedRequests) else CheckedRequests(context)
            try:
                if handler.request_streaming:
                    return await method(self._messages(requests, ours), context)
                return await method(await self._first(requests), context)
            except Refused as error:
                refusal = error.with_traceback(None)
            await self._refuse(context, refusal)

        return call

    def _ending(self, call: Call) -> Call:
        """Return a call that ends, which else would last as long as its caller likes."""

        async def limited(requests: Requests, context: Context) -> Any:
            task = asyncio.ensure_future(call(requests, context))
            try:
                return await self._draining.within(WATCH_SECONDS, task)
            except TimeoutError:
                pass
            finally:
                task.cancel()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this has lasted; call again")

        return limited

    async def _messages(self, requests: Requests, ours: bool) -> AsyncGenerator[Any, None]:
        """Yield the messages; raise Refused if there is none, or one that is no message.

        `ours`: the method itself waits with `Patience`.
        """
        message, patience = await self._first(requests), Patience()
        while message is not None:
            yield message
            work = anext(requests, None)
            message = _checked(await (work if ours else patience.wait(work, math.inf)))

    async def _first(self, requests: Requests) -> Any:
        """Return the first message; raise Refused if it is late, missing or no message."""
        try:
            work = anext(requests, None)
            message = await self._draining.within(self._stall_seconds, work)
        except TimeoutError:
            raise Refused(pb.TOO_SLOW, "no message came; call again") from None
        if message is None:
            await asyncio.sleep(HANG_UP_SECONDS)
            raise Refused(pb.MALFORMED, "a call without a message")
        return _checked(message)


def _checked(message: Any) -> Any:
    if message is _UNPARSABLE:
        raise Refused(pb.MALFORMED, "the request is no message of this method")
    return message


def _parser(deserialize: Callable[[bytes], Any], most: int | None) -> Callable[[bytes], Any]:
    """Return a parser that does not raise, of messages of at most `most` bytes."""

    def parse(data: bytes) -> object:
        if most is not None and len(data) > most:
            return _UNPARSABLE
        try:
            return deserialize(data)
        except DecodeError:
            return _UNPARSABLE

    return parse
