"""What all watchers are sent: made once for each change, at most twice a second.

A watcher that reads slowly gets the newest state when it has read the one before; nothing waits
for it, and nothing is kept for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from featherfed.page.errors import BadRequest
from featherfed.page.source import Snapshot, Source

log = logging.getLogger(__name__)

SHORTEST_SECONDS = 0.5
"""Between two changes that are sent."""
_REST = 4.0
"""After a snapshot is made, none is made for so many times the processor time that it took."""
LONGEST_REST_SECONDS = 5.0
"""At most so long."""
REFRESH_SECONDS = 5.0
"""When a snapshot is sent though only time has passed: ages and deadlines in it have changed."""
COMMENT_SECONDS = 15.0
"""When a comment is sent to a watcher that gets nothing else, so that both notice a broken link."""
MOST_WATCHERS = 100
RETRY_MILLISECONDS = 2000
"""When a browser looks for the page again that is away."""

_COMMENT = b": here\n\n"
_BEGIN = f"retry: {RETRY_MILLISECONDS}\n\n".encode()


@dataclass(frozen=True)
class Frame:
    """The state of the page after one change."""

    number: int = 0
    """Changes so far; 0 before the first."""
    snapshot: Snapshot = field(default_factory=dict)
    steady: Any = None
    event: bytes = b""
    """The snapshot as an event."""
    sections: dict[str, str] = field(default_factory=dict)
    """Parts of the page."""
    is_whole: bool = False
    """Whether the parts are of this snapshot; nobody watches them otherwise."""
    changed: dict[str, int] = field(default_factory=dict)
    """The number of the frame in which each part changed last."""
    encoded: dict[int, bytes] = field(default_factory=dict)
    """Events with the parts that changed after a frame, by its number."""

    def changes_since(self, number: int) -> bytes:
        """Return the event with the parts that changed after frame `number`; empty for none."""
        if number not in self.encoded:
            found = {
                name: html for name, html in self.sections.items() if self.changed[name] > number
            }
            self.encoded[number] = _event("sections", found) if found else b""
        return self.encoded[number]


class Feed:
    """Makes frames while anybody watches; all methods belong to one event loop."""

    def __init__(
        self, source: Source, steady: Callable[[Snapshot], Any], clock: Callable[[], float]
    ) -> None:
        """`steady`: what of a snapshot does not change by time alone; `clock`: seconds."""
        self._source = source
        self._steady = steady
        self._clock = clock
        self._frame = Frame()
        self._new = asyncio.Event()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._next_at = 0.0
        self._sent_at = 0.0
        self._used = 0.0
        self._watchers = 0
        self._page_watchers = 0
        self._closed = False
        self._failed = ""

    async def run(self) -> None:
        """Make a frame whenever somebody watches and it is time, until `close`."""
        while not self._closed:
            await self._wanted.wait()
            await asyncio.sleep(max(0.0, self._next_at - self._clock()))
            if self._watchers:
                await self._make(with_sections=self._page_watchers > 0)
            else:
                self._wanted.clear()

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._wanted.set()
        self._notify()

    async def current(self, with_sections: bool) -> Frame:
        """Return the state of now, or of less than `SHORTEST_SECONDS` ago."""
        await self._make(with_sections)
        return self._frame

    async def snapshots(self) -> AsyncIterator[bytes]:
        """Yield the events of GET /api/events, inside of `watching`."""
        async for _, frame in self._frames(False):
            yield frame.event if frame is not None else _COMMENT

    async def changes(self) -> AsyncIterator[bytes]:
        """Yield the events of GET /api/page: first all parts, then those that change.

        Inside of `watching`.
        """
        async for before, frame in self._frames(True):
            text = _COMMENT if frame is None else frame.changes_since(before)
            if text:
                yield text

    async def _frames(self, with_sections: bool) -> AsyncIterator[tuple[int, Frame | None]]:
        """Yield (number of the frame before, frame) for each new one; None when none comes."""
        frame, before = await self.current(with_sections), 0
        yield 0, frame
        while not self._closed:
            before = frame.number
            if self._frame.number == before:
                new = self._new
                try:
                    async with asyncio.timeout(COMMENT_SECONDS):
                        await new.wait()
                except TimeoutError:
                    yield before, None
                    continue
            frame = self._frame
            if not self._closed and frame.number != before:
                yield before, frame

    @contextmanager
    def watching(self, with_sections: bool) -> Iterator[None]:
        """Count a watcher inside of this block; raise BadRequest if there are too many."""
        if self._watchers >= MOST_WATCHERS:
            raise BadRequest("as many watch this page as it serves; try again later", 503)
        self._watchers += 1
        self._page_watchers += with_sections
        self._wanted.set()
        try:
            yield
        finally:
            self._watchers -= 1
            self._page_watchers -= with_sections

    def _is_due(self, with_sections: bool) -> bool:
        lacks_sections = with_sections and not self._frame.is_whole and not self._failed
        return self._clock() >= self._next_at or lacks_sections

    async def _make(self, with_sections: bool) -> None:
        """Make a frame if one is due, or wait for the one that is being made.

        It is a task of its own: one that asks and goes away neither ends nor repeats it.
        """
        for _ in range(2):  # the first may be one that began without sections
            if not self._is_due(with_sections):
                return
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._make_now(with_sections))
            await asyncio.shield(self._task)

    async def _make_now(self, with_sections: bool) -> None:
        begin, found = self._clock(), None
        try:
            found = await asyncio.to_thread(self._timed_next, self._frame, with_sections)
        except Exception as error:  # what it shows must not end the page, nor fill the log
            if repr(error) != self._failed:
                log.exception("the live page shows what was before")
            self._failed = repr(error)
        else:
            self._failed = ""
        rest = min(_REST * self._used, LONGEST_REST_SECONDS)
        self._next_at = begin + max(SHORTEST_SECONDS, rest)
        if found is not None:
            self._frame, self._sent_at = found, begin
            self._notify()

    def _timed_next(self, frame: Frame, with_sections: bool) -> Frame | None:
        """Do what `_next` does, and note the processor time; the time of others is not its own."""
        begin = time.thread_time()
        try:
            return self._next(frame, with_sections)
        finally:
            self._used = time.thread_time() - begin

    def _next(self, frame: Frame, with_sections: bool) -> Frame | None:
        """Return the frame after `frame`, None if nothing is new; runs in a thread."""
        snapshot = self._source.snapshot()
        steady = self._steady(snapshot)
        known = frame.is_whole or (frame.number > 0 and not with_sections)
        if known and steady == frame.steady and self._clock() - self._sent_at < REFRESH_SECONDS:
            return None
        number, sections = frame.number + 1, frame.sections
        if with_sections:
            sections = self._source.sections(snapshot)
        changed = {
            name: frame.changed[name] if frame.sections.get(name) == html else number
            for name, html in sections.items()
        }
        event = _event("run", snapshot)
        return Frame(number, snapshot, steady, event, sections, with_sections, changed)

    def _notify(self) -> None:
        self._new.set()
        self._new = asyncio.Event()


def begin() -> bytes:
    """Return what every stream begins with."""
    return _BEGIN


def monotonic() -> float:
    """Return the clock of a feed."""
    return time.monotonic()


def _event(name: str, value: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value, allow_nan=False)}\n\n".encode()
