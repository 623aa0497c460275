"""Letting calls wait until something changes in the run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Changes:
    """Wakes the long polls that wait for a change."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._closed = False

    def notify(self) -> None:
        """Wake all polls: what they wait for may be there."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Let all polls, and later ones, return at once."""
        self._closed = True
        self.notify()

    async def poll(
        self, ask: Callable[[], Awaitable[T]], found: Callable[[T], bool], seconds: float
    ) -> T:
        """Call `ask` now and after every change; return the first answer that `found` accepts.

        Returns the last answer once `seconds` are over or polls are closed.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            changed = self._changed
            answer = await ask()
            if found(answer) or loop.time() >= until or self._closed:
                return answer
            del answer  # not kept in memory while polls wait, perhaps a thousand
            try:
                async with asyncio.timeout_at(until):
                    await changed.wait()
            except TimeoutError:
                pass
