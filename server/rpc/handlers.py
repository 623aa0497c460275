"""Handlers of methods in one form: a function of the caller's messages and the context.

It takes a stream whatever the method takes: gRPC reads a lone request before anything of ours runs,
so nothing of ours would see a caller that never sends it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from featherfed.server.rpc.context import Context

Requests = AsyncIterator[Any]
Call = Callable[[Requests, Context], Awaitable[Any]]


class CheckedRequests:
    """The messages of a call's caller, with a check at each of them and at their end.

    By reads alone: gRPC's own iterator outlives the call whose messages it has not all given.
    """

    def __init__(self, context: Context, check: Callable[[], object] = lambda: None) -> None:
        """`check`: raises if the caller must send no more."""
        self._context = context
        self._check = check

    def __aiter__(self) -> CheckedRequests:
        """Return this."""
        return self

    async def __anext__(self) -> Any:
        """Return the next message."""
        message = await self._context.read()
        self._check()
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise StopAsyncIteration
        return message


def handler_of(call: Call, like: Any, parse: Callable[[bytes], Any] | None = None) -> Any:
    """Return a handler that answers as `like` does, by `call`; `parse`: another parser than its."""
    make = (
        grpc.stream_stream_rpc_method_handler
        if like.response_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    return make(call, parse or like.request_deserializer, like.response_serializer)


def call_of(handler: Any) -> Call:
    """Return the function of a handler that `handler_of` made."""
    call: Call = handler.stream_stream if handler.response_streaming else handler.stream_unary
    return call


def method_of(handler: Any) -> Callable[[Any, Context], Awaitable[Any]]:
    """Return the method of a service's handler; one that yields its replies writes them instead."""
    takes, gives = _arity(handler.request_streaming), _arity(handler.response_streaming)
    method: Callable[[Any, Context], Any] = getattr(handler, f"{takes}_{gives}")
    return _writing(method) if inspect.isasyncgenfunction(method) else method


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _writing(
    method: Callable[[Any, Context], Any],
) -> Callable[[Any, Context], Awaitable[None]]:
    async def call(request: Any, context: Context) -> None:
        async with contextlib.aclosing(method(request, context)) as replies:
            async for reply in replies:
                await context.write(reply)

    return call
