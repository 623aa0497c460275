"""An asyncio event loop whose tasks are events of the simulated scheduler."""

from __future__ import annotations

import asyncio
import contextvars
import random
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from featherfed.simulator.scheduler import Event, Process, Scheduler


class SimulatedLoop:
    """The event loop of one simulated process; its worker threads take random times to begin.

    It has what tasks, futures and timeouts need of an `asyncio.AbstractEventLoop`.
    """

    def __init__(
        self,
        process: Process,
        draw: random.Random,
        on_error: Callable[[str], None],
        slowest_thread: float = 0.02,
    ) -> None:
        """`on_error` is told of exceptions that nobody handles."""
        self._process = process
        self._scheduler: Scheduler = process.scheduler
        self._draw = draw
        self._on_error = on_error
        self._slowest_thread = slowest_thread
        self._tasks: dict[asyncio.Task[Any], None] = {}
        process.on_death.append(self.dispose)

    @property
    def open_tasks(self) -> int:
        """How many tasks have not ended."""
        return len(self._tasks)

    def call(self, event: Event) -> None:
        """Let an event of this loop happen."""
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            assert event.context is not None
            event.context.run(event.callback, *event.args)
        finally:
            asyncio._set_running_loop(None)

    def time(self) -> float:
        """Return the simulated time."""
        return self._scheduler.now

    def get_debug(self) -> bool:
        """Return False: tasks keep no tracebacks."""
        return False

    def is_running(self) -> bool:
        """Return whether the process lives."""
        return self._process.alive

    def is_closed(self) -> bool:
        """Return whether the process is dead."""
        return not self._process.alive

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Event:
        """Call `callback` with the next events."""
        return self.call_at(self.time(), callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Event:
        """Call `callback` with the next events."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Event:
        """Call `callback` in `delay` seconds."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Event:
        """Call `callback` at a time."""
        event = Event(max(when, self._scheduler.now), self._process, callback, args)
        event.context = context or contextvars.copy_context()
        event.loop = self
        return self._scheduler.push(event)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        """Run a coroutine."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)  # type: ignore[arg-type]
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def run_in_executor(
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function in a simulated thread, which begins after a random time."""
        future = self.create_future()

        def work() -> None:
            try:
                self.call_soon(_settle, future.set_result, future, func(*args))
            except Exception as error:
                self.call_soon(_settle, future.set_exception, future, error)

        self._process.spawn(work, self._draw.uniform(0, self._slowest_thread))
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an exception that nobody handled."""
        if self._process.alive:
            self._on_error(f"{context.get('message')}: {context.get('exception')!r}")

    def dispose(self) -> None:
        """Free all coroutines of a dead process; what they would still do has no effect."""
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                while self._tasks:  # the end of one may begin others
                    task = next(iter(self._tasks))
                    del self._tasks[task]
                    task.remove_done_callback(self._tasks.pop)
                    with suppress(BaseException):
                        coroutine = task.get_coro()
                        assert coroutine is not None
                        coroutine.close()
        finally:
            asyncio._set_running_loop(None)


def _settle(settle: Callable[[Any], None], future: asyncio.Future[Any], outcome: object) -> None:
    if not future.done():  # perhaps cancelled meanwhile
        settle(outcome)
