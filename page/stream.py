"""Server-Sent Events as an answer that ends when its reader is gone, or reads nothing for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager

from starlette.types import Receive, Scope, Send

STALL_SECONDS = 20.0
"""How long a reader may take nothing."""


class EventStream:
    """Sends events, each only when the one before is on its way."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        begin: bytes,
        watching: AbstractContextManager[None],
    ) -> None:
        """`watching`: a block around the whole answer; it may raise before that has begun."""
        self._events = events
        self._begin = begin
        self._watching = watching

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        with self._watching:
            await self._answer(receive, send)

    async def _answer(self, receive: Receive, send: Send) -> None:
        await send(_start({"content-type": "text/event-stream", "x-accel-buffering": "no"}))
        sending = asyncio.create_task(self._send(send))
        hearing = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, hearing):
                task.cancel()
            results = await asyncio.gather(sending, hearing, return_exceptions=True)
        for result in results:
            ended = isinstance(result, asyncio.CancelledError | TimeoutError | OSError)
            if isinstance(result, BaseException) and not ended:
                raise result

    async def _send(self, send: Send) -> None:
        await self._write(send, self._begin)
        async for event in self._events:
            await self._write(send, event)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, text: bytes) -> None:
        async with asyncio.timeout(STALL_SECONDS):
            await send({"type": "http.response.body", "body": text, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(headers: Mapping[str, str]) -> dict[str, object]:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": encoded}
