"""The simulated clock, and the order in which everything happens: one event after the other.

Server code runs in tasks of an event loop, blocking code of clients and worker threads in
greenlets; both wait for events of this one queue. Nothing here reads a real clock.
"""

from __future__ import annotations

import contextvars
import hashlib
import heapq
from collections.abc import Callable
from typing import Any

import greenlet

START = 1_700_000_000.0
"""Simulated time at the begin of a run, in seconds since the epoch."""


class Killed(BaseException):
    """The simulated process that runs this code is dead; nothing of it may go on."""


class Event:
    """Something that is to happen at a time; also what an event loop returns as its handle."""

    __slots__ = ("args", "callback", "context", "loop", "process", "stopped", "time")

    def __init__(
        self,
        time: float,
        process: Process | None,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self.time = time
        self.process = process
        self.callback = callback
        self.args = args
        self.context: contextvars.Context | None = None
        self.loop: Any = None
        self.stopped = False

    def cancel(self) -> None:
        """Let it not happen."""
        self.stopped = True

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.stopped

    def when(self) -> float:
        """Return the time at which it happens."""
        return self.time


class Process:
    """A simulated process: what belongs to it stops when it is killed, and waits while frozen."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.scheduler = scheduler
        self.name = name
        self.alive = True
        self.frozen = False
        self.threads: list[greenlet.greenlet] = []
        self.on_point: Callable[[str], None] = lambda place: None
        """Called at every place at which the process may die or fail."""
        self.on_death: list[Callable[[], None]] = []
        self.wall_offset = 0.0
        """By how much the machine's clock is wrong, in seconds."""
        self._postponed: list[Event] = []

    def spawn(self, work: Callable[[], object], delay: float = 0.0) -> None:
        """Start a thread of this process that may block."""

        def run() -> None:
            try:
                work()
            except Killed:
                pass
            finally:
                self.threads.remove(thread)

        thread = greenlet.greenlet(run, parent=self.scheduler.hub)
        thread.process = self  # type: ignore[attr-defined]
        self.threads.append(thread)
        self.scheduler.after(delay, self, thread.switch)

    def point(self, place: str) -> None:
        """Reach a place at which this process may die or fail; raise Killed if it is dead."""
        if self.alive:
            self.on_point(place)
        if not self.alive:
            raise Killed

    def kill(self) -> None:
        """End the process; what is left of it is removed before the next event."""
        if self.alive:
            self.alive = self.frozen = False
            self.scheduler.trace("killed", self.name)
            self.scheduler.after(0, None, self.remove)

    def remove(self) -> None:
        """End the threads of a dead process, and tell who must know."""
        for thread in list(self.threads):
            while thread:  # it has begun, and not ended
                thread.throw(Killed)
        for callback in self.on_death:
            callback()
        self._postponed.clear()

    def postpone(self, event: Event) -> None:
        """Keep an event of a frozen process for later."""
        self._postponed.append(event)

    def thaw(self) -> None:
        """Let a frozen process go on with all that happened meanwhile."""
        self.frozen = False
        postponed, self._postponed = self._postponed, []
        for event in postponed:
            event.time = self.scheduler.now
            self.scheduler.push(event)


class Scheduler:
    """Lets events happen in order of time, and at the same time in order of creation."""

    def __init__(self, on_trace: Callable[[str], None] | None = None) -> None:
        self.now = START
        self.steps = 0
        """How many events have happened."""
        self.hub = greenlet.getcurrent()
        self.current: Process | None = None
        """The process of the event that happens now."""
        self._queue: list[tuple[float, int, Event]] = []
        self._number = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._on_trace = on_trace

    def trace(self, *words: object) -> None:
        """Add a line to the run's trace."""
        line = f"{self.now - START:.6f} " + " ".join(str(word) for word in words)
        self._digest.update(line.encode())
        if self._on_trace is not None:
            self._on_trace(line)

    @property
    def digest(self) -> str:
        """The digest of the trace so far: equal runs have equal ones."""
        return self._digest.hexdigest()

    def push(self, event: Event) -> Event:
        """Add an event to the queue."""
        self._number += 1
        heapq.heappush(self._queue, (event.time, self._number, event))
        return event

    def at(
        self, time: float, process: Process | None, callback: Callable[..., object], *args: Any
    ) -> Event:
        """Call `callback` at a time, unless `process` is dead by then."""
        return self.push(Event(max(time, self.now), process, callback, args))

    def after(
        self, delay: float, process: Process | None, callback: Callable[..., object], *args: Any
    ) -> Event:
        """Call `callback` in `delay` seconds, unless `process` is dead by then."""
        return self.at(self.now + delay, process, callback, *args)

    def step(self) -> bool:
        """Let the next event happen; return False if there is none."""
        while self._queue:
            time, _, event = heapq.heappop(self._queue)
            process = event.process
            if event.stopped or (process is not None and not process.alive):
                continue
            self.now = max(self.now, time)
            if process is not None and process.frozen:
                process.postpone(event)
                continue
            self.steps += 1
            self.current = process
            if process is not None:
                process.on_point("step")
                if not process.alive:
                    continue
            if event.loop is not None:
                event.loop.call(event)
            else:
                event.callback(*event.args)
            self.current = None
            return True
        return False

    @property
    def process(self) -> Process | None:
        """The process whose code runs now."""
        found: Process | None = getattr(greenlet.getcurrent(), "process", None)
        return found or self.current

    def pause(self, seconds: float) -> None:
        """Block the current thread for some simulated seconds; raise Killed if it dies in them."""
        Waiter(self).wait(seconds)


class Waiter:
    """Lets the current thread wait for a value that something else sets."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._thread = greenlet.getcurrent()
        self._process: Process = self._thread.process  # type: ignore[attr-defined]
        self._waits = False
        self._done = False

    def set(self) -> None:
        """End the wait, or the next one."""
        self._done = True
        if self._waits:
            self._waits = False
            self._scheduler.after(0, self._process, self._thread.switch)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait; return whether `set` was called within these seconds."""
        self._process.point("wait")
        if not self._done:
            timer = None
            if seconds is not None:
                timer = self._scheduler.after(seconds, self._process, self._expire)
            self._waits = True
            self._scheduler.hub.switch()
            if timer is not None:
                timer.cancel()
        if not self._process.alive:
            raise Killed
        done, self._done = self._done, False
        return done

    def _expire(self) -> None:
        if self._waits:
            self._waits = False
            self._thread.switch()
