"""Bytes that are no message are their sender's fault, and gRPC must be told so.

Its own answer is UNKNOWN and a traceback in the server's log, as for a bug.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused

_NONSENSE = object()
_REFUSED = Refused(pb.MALFORMED, "the request is no message of this method")


class ParsingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses what does not parse: INVALID_ARGUMENT, in a stream of requests as MALFORMED."""

    def __init__(self, service: str) -> None:
        """Look after the methods of one service."""
        self._prefix = f"/{service}/"
        self._made: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """Return the method's handler, which refuses what does not parse."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(self._prefix):
            return handler
        if details.method not in self._made:
            self._made[details.method] = _parsing(handler)
        return self._made[details.method]


def _parsing(handler: Any) -> Any:
    """Return a method's handler with a parser that does not raise."""

    def parse(data: bytes) -> object:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            return _NONSENSE

    async def unary_unary(request: Any, context: Any) -> Any:
        await _check(request, context)
        return await handler.unary_unary(request, context)

    async def unary_stream(request: Any, context: Any) -> None:
        await _check(request, context)
        await handler.unary_stream(request, context)

    async def stream_unary(requests: AsyncIterator[Any], context: Any) -> Any:
        return await handler.stream_unary(_checked(requests), context)

    form = handler.response_serializer
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(stream_unary, parse, form)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(unary_stream, parse, form)
    return grpc.unary_unary_rpc_method_handler(unary_unary, parse, form)


async def _check(request: object, context: Any) -> None:
    if request is _NONSENSE:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(_REFUSED))


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _NONSENSE:
            raise Refused(_REFUSED.reason, _REFUSED.detail)
        yield request
