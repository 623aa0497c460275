"""The loop that drives a run: let time pass, aggregate closed rounds, wake clients, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from typing import TypeVar

from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import CannotStore
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.rounds.transitions import Phase
from featherfed.server.rpc.service import FederationService, create_server, join_address
from featherfed.server.storage.failures import Trouble
from featherfed.server.transfers.releases import Releases

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
GRACE_SECONDS = 5.0
DRAIN_SECONDS = 20.0
"""For uploads under way when the server is told to end."""
COUNT_SECONDS = 1.0
"""At least so often, counted control bytes go to the ledger; a crash forgets no more than that."""
STORAGE_PAUSE_SECONDS = 2.0
"""Between two tries to write to a disk that is full."""

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

    `on_listening` gets the address; `on_round` is called after every aggregated round, and
    `on_finished` in the end, when those who are here have the final model; both in a thread.
    What they or the store cannot write now (CannotStore, OSError) is tried again until it works,
    for `on_round` with the next round; whoever ends the server before that gets False. Raises
    ServerError if a port is taken, credentials cannot be used or the store turns out to be damaged.
    """
    settings = coordinator.settings.server
    telemetry, finished = Telemetry(), False
    service = FederationService(coordinator, releases, telemetry)
    disk = _Disk(stop)
    with contextlib.ExitStack() as after:
        if settings.metrics is not None:
            telemetry.watch(coordinator)
            url, close = telemetry.listen(settings.metrics)
            after.callback(close)
            log.info("metrics for Prometheus: %s", url, extra={"event": "metrics", "url": url})
        security = coordinator.settings.security
        server, port = await create_server(service, settings.host, settings.port, security)
        gc.collect()
        gc.freeze()  # what is there to stay; else a call's garbage waits for a share of all of it
        after.callback(gc.unfreeze)
        on_listening(join_address(settings.host, port))
        beside = [
            asyncio.create_task(_drain_at(stop, service)),
            asyncio.create_task(_keep_books(coordinator, disk)),
        ]
        try:
            await _rounds(coordinator, service, disk, on_round)
            if coordinator.phase is Phase.FINISHED:
                await _linger(coordinator, service, stop, settings.linger)
                finished = await disk.insist(on_finished)
                if settings.stay:
                    await stop.wait()
        finally:
            why = "told to stop" if stop.is_set() else "the run has finished"
            log.info("shutting down: %s", why, extra={"event": "shutdown", "finished": finished})
            await service.drain(DRAIN_SECONDS)
            # What gRPC took over is not with the client yet: over a thin link that takes a while.
            lingers = finished and not stop.is_set()
            await server.stop(settings.linger if lingers else GRACE_SECONDS)
            for task in beside:
                task.cancel()
    return finished


class _Disk:
    """Does what writes in a thread, and outlives a disk that is full."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop
        self._files = Trouble("the run's files")

    async def attempt(self, work: Callable[[], T]) -> T | None:
        """Return what `work` returns, or None if it cannot write now."""
        try:
            result = await asyncio.to_thread(work)
        except CannotStore:  # the store has told the log
            return None
        except OSError as error:
            self._files.failed(error)
            return None
        self._files.worked()
        return result

    async def insist(self, work: Callable[[], None]) -> bool:
        """Do `work` until it could write; False if told to stop before."""

        def do() -> bool:
            work()
            return True

        while not (done := await self.attempt(do)) and not self.stop.is_set():
            await _pause(self.stop, STORAGE_PAUSE_SECONDS)
        return done is not None


async def _drain_at(stop: asyncio.Event, service: FederationService) -> None:
    """Let nobody wait for what goes on: the round's aggregation may take a while."""
    await stop.wait()
    await service.drain(0)


async def _keep_books(coordinator: Coordinator, disk: _Disk) -> None:
    while True:
        await asyncio.sleep(COUNT_SECONDS)
        await disk.attempt(coordinator.store.write_counts)


async def _rounds(
    coordinator: Coordinator,
    service: FederationService,
    disk: _Disk,
    on_round: Callable[[], None],
) -> None:
    def aggregate() -> None:
        with service.telemetry.aggregated.time():
            coordinator.aggregate()

    known, stop = None, disk.stop
    while not stop.is_set() and coordinator.phase is not Phase.FINISHED:
        state = await disk.attempt(coordinator.tick)
        if state is None:
            await _pause(stop, STORAGE_PAUSE_SECONDS)
        elif state.phase is Phase.AGGREGATING:
            if await disk.insist(aggregate):
                await disk.attempt(on_round)
        elif known != (state.phase, state.round, state.cohort):
            known = state.phase, state.round, state.cohort
            service.notify()  # there may be a task for someone
        else:
            await _pause(stop, TICK_SECONDS)


async def _linger(
    coordinator: Coordinator, service: FederationService, stop: asyncio.Event, seconds: float
) -> None:
    """Stay for clients and devices that have not fetched the final model, but not for ever."""
    service.notify()
    until = asyncio.get_running_loop().time() + seconds
    while not stop.is_set() and asyncio.get_running_loop().time() < until:
        finished = await asyncio.to_thread(coordinator.everyone_has_finished)
        if finished and service.every_device_has(coordinator.settings.rounds):
            return
        await _pause(stop, TICK_SECONDS)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
