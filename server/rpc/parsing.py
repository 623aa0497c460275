"""Refusing bytes that do not parse: they are the sender's fault.

gRPC itself would answer UNKNOWN and log a traceback, as for a bug of the server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.server.rpc.context import Context, Refuse

_UNPARSABLE = object()


class ParsingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses requests of one service that do not parse, with the reason MALFORMED."""

    def __init__(self, service: str, refuse: Refuse) -> None:
        """`service`: its full name."""
        self._prefix = f"/{service}/"
        self._refuse = refuse
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """Return the method's handler with a parser that does not raise."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(self._prefix):
            return handler
        if details.method not in self._handlers:
            self._handlers[details.method] = self._parsing(handler)
        return self._handlers[details.method]

    def _parsing(self, handler: Any) -> Any:
        def parse(data: bytes) -> object:
            try:
                return handler.request_deserializer(data)
            except DecodeError:
                return _UNPARSABLE

        async def unary_unary(request: Any, context: Context) -> Any:
            await self._check(request, context)
            return await handler.unary_unary(request, context)

        async def unary_stream(request: Any, context: Context) -> None:
            await self._check(request, context)
            await handler.unary_stream(request, context)

        async def stream_unary(requests: AsyncIterator[Any], context: Context) -> Any:
            return await handler.stream_unary(_checked(requests), context)

        serialize = handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(stream_unary, parse, serialize)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(unary_stream, parse, serialize)
        return grpc.unary_unary_rpc_method_handler(unary_unary, parse, serialize)

    async def _check(self, request: object, context: Context) -> None:
        if request is _UNPARSABLE:
            await self._refuse(context, _refusal())


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _UNPARSABLE:
            raise _refusal()
        yield request


def _refusal() -> Refused:
    return Refused(pb.MALFORMED, "the request is no message of this method")
