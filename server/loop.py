"""The loop that drives a run: open and close rounds, aggregate them, wake clients, shut down."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import CannotStore, Deposed
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.rpc.server import create_server, join_address
from featherfed.server.rpc.service import FederationService
from featherfed.server.storage.failures import WriteFailures
from featherfed.server.transfers.releases import Releases

log = logging.getLogger(__name__)

_REST = 4.0
"""After it has looked whether a round is due, the loop rests for so many times what that took."""
LONGEST_PAUSE_SECONDS = 0.2
"""The longest such rest; a phase that ends cuts it short."""
LINGER_SECONDS = 1.0
"""How often the loop looks whether the last clients are gone."""
GRACE_SECONDS = 5.0
"""Time that calls get to end when the server stops before the run's end."""
DRAIN_SECONDS = 20.0
"""Time that uploads under way get to end when the server is told to stop."""
FLUSH_SECONDS = 1.0
"""How often counts that wait in memory are written; a crash loses at most those of this time."""
CYCLES = 20_000
"""New objects after which Python looks for unreachable cycles."""
STORAGE_PAUSE_SECONDS = 2.0
"""Time between two attempts to write to a full disk."""

T = TypeVar("T")


async def serve(
    coordinator: Coordinator,
    releases: Releases | None = None,
    *,
    on_listening: Callable[[str], None],
    on_round: Callable[[], None],
    on_finished: Callable[[], None],
    stop: asyncio.Event,
) -> bool:
    """Serve a run until its end, or until `stop` is set; return whether it has finished.

    `on_listening` gets the address. `on_round` is called after every aggregated round, and
    `on_finished` when all present clients have the final model; both in a thread. What cannot be
    written now (CannotStore, OSError) is tried again until it can; a failed `on_round` with the
    next round. Raises ServerError if a port is taken, credentials cannot be used, or the store is
    found to be damaged; Deposed, after `stop` is set, if another server serves the run now.
    """
    settings = coordinator.settings.server
    telemetry, finished = Telemetry(), False
    service = FederationService(coordinator, releases, telemetry)
    writer = _Writer(stop)
    with contextlib.ExitStack() as stack:
        if settings.metrics is not None:
            telemetry.watch(coordinator.store, coordinator.status)
            url, close = telemetry.listen(settings.metrics)
            stack.callback(close)
            log.info("metrics for Prometheus: %s", url, extra={"event": "metrics", "url": url})
        server, port = await create_server(service, coordinator.settings)
        # Long-lived objects are not scanned again at every collection while the server runs, nor
        # those of thousands of open calls at every 700 new objects: calls leave few cycles.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(CYCLES)
        on_listening(join_address(settings.host, port))
        tasks = [
            asyncio.create_task(_drain_on_stop(stop, service)),
            asyncio.create_task(_flush_regularly(coordinator, writer)),
        ]
        try:
            await _run_rounds(coordinator, service, writer, on_round)
            if coordinator.phase is Phase.FINISHED:
                await _linger(coordinator, service, writer, settings.linger)
                await writer.write_until_done(coordinator.settle)
                finished = await writer.write_until_done(on_finished)
                if settings.stay:
                    await stop.wait()
        finally:
            why = "told to stop" if stop.is_set() else "the run has finished"
            why = str(writer.deposed or why)
            log.info("shutting down: %s", why, extra={"event": "shutdown", "finished": finished})
            await service.draining.drain(DRAIN_SECONDS)
            # gRPC may still hold sent bytes: over a thin link they take a while to arrive.
            lingers = finished and not stop.is_set()
            await server.stop(settings.linger if lingers else GRACE_SECONDS)
            for task in tasks:
                task.cancel()
    if writer.deposed is not None:
        raise writer.deposed
    return finished


class _Writer:
    """Runs functions that write, in a thread, and again while the disk takes nothing."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop
        self.deposed: Deposed | None = None
        """Why this server must end."""
        self._failures = WriteFailures("the run's files")

    async def write(self, work: Callable[[], T]) -> T | None:
        """Call `work` in a thread; return its result, or None if it cannot write now."""
        try:
            result = await asyncio.to_thread(work)
        except CannotStore:  # which the store has logged
            return None
        except OSError as error:
            self._failures.failed(error)
            return None
        self._failures.succeeded()
        return result

    async def write_until_done(self, work: Callable[[], None]) -> bool:
        """Repeat `work` until it can write; return False if `stop` is set before."""

        def do() -> bool:
            work()
            return True

        while not (done := await self.write(do)) and not self.stop.is_set():
            await _wait(STORAGE_PAUSE_SECONDS, self.stop)
        return done is not None


async def _drain_on_stop(stop: asyncio.Event, service: FederationService) -> None:
    """On `stop`, release long polls at once, even while a round is aggregated."""
    await stop.wait()
    await service.draining.drain(0)


async def _flush_regularly(coordinator: Coordinator, writer: _Writer) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        coordinator.run.clock()  # takes a longer time without a reading for a standstill
        try:
            await writer.write(coordinator.store.flush)
        except Deposed as deposed:
            writer.deposed = deposed
            writer.stop.set()
            return


async def _run_rounds(
    coordinator: Coordinator,
    service: FederationService,
    writer: _Writer,
    on_round: Callable[[], None],
) -> None:
    """Open, close and aggregate rounds until the run has finished or is told to stop."""

    def aggregate() -> None:
        with service.telemetry.aggregated.time():
            coordinator.aggregate()

    def look() -> tuple[RunState, float]:
        return coordinator.tick(), coordinator.due_in()

    def on_phase() -> None:
        loop.call_soon_threadsafe(wake.set)
        loop.call_soon_threadsafe(changed.set)

    def on_decision() -> None:
        on_phase()
        loop.call_soon_threadsafe(service.changes.notify)  # sessions may have ended

    wake, stop, loop = service.round_may_be_due, writer.stop, asyncio.get_running_loop()
    changed = asyncio.Event()
    coordinator.run.on_phase = on_phase
    coordinator.run.on_decision = on_decision
    known, report = None, _Repeated(on_round, writer)
    while not stop.is_set() and coordinator.phase is not Phase.FINISHED:
        wake.clear()
        changed.clear()
        begin = time.monotonic()  # the loop's own time may go in whole milliseconds
        try:
            state, seconds = await coordinator.commits.run(look)
        except CannotStore:  # which the store has logged
            await _wait(STORAGE_PAUSE_SECONDS, stop)
            continue
        if state.phase is Phase.AGGREGATING:
            if await writer.write_until_done(aggregate):
                report.begin()
            continue
        if known != (state.phase, state.round, state.cohort):
            known = state.phase, state.round, state.cohort
            service.changes.notify()  # there may be a task for some clients
        # Many clients wake the loop often, and it looks at all of them each time.
        rest = min(_REST * (time.monotonic() - begin), LONGEST_PAUSE_SECONDS)
        await _wait(rest, stop, changed)
        await _wait(seconds, stop, wake)
    await report.end()


class _Repeated:
    """Calls a function in a thread while other work goes on, once for all that it is behind."""

    def __init__(self, work: Callable[[], None], writer: _Writer) -> None:
        self._work = work
        self._writer = writer
        self._wanted = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Call the function soon, or again if it is being called; raise what it raised before."""
        self._wanted = True
        if self._task is not None and self._task.done():
            self._task.result()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._repeat())

    async def end(self) -> None:
        """Wait until the function has been called for the last `begin`; raise what it raised."""
        if self._task is not None:
            await self._task

    async def _repeat(self) -> None:
        while self._wanted:
            self._wanted = False
            await self._writer.write(self._work)


async def _linger(
    coordinator: Coordinator, service: FederationService, writer: _Writer, seconds: float
) -> None:
    """Wait, `seconds` at most, until all present clients and devices have the final model.

    And until those clients have evaluated it, and its int8 file, where clients evaluate.
    """
    service.changes.notify()
    stop = writer.stop
    until = asyncio.get_running_loop().time() + seconds
    while not stop.is_set() and asyncio.get_running_loop().time() < until:
        service.round_may_be_due.clear()
        finished = await writer.write(coordinator.everyone_has_finished)
        if finished and coordinator.devices.all_have(coordinator.run.state.round):
            return
        await _wait(LINGER_SECONDS, stop, service.round_may_be_due)


async def _wait(seconds: float, *events: asyncio.Event) -> None:
    """Wait for one of some events, `seconds` at most."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    timeout = None if seconds == math.inf else max(0.0, seconds)
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
