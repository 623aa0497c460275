"""The loop that drives a run: let time pass, aggregate closed rounds, wake clients, end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from featherfed.server.coordinator import Coordinator
from featherfed.server.releases import Releases
from featherfed.server.rounds import Phase
from featherfed.server.service import FederationService, create_server, join_address

TICK_SECONDS = 0.2
GRACE_SECONDS = 5.0


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
    Raises ServerError if the port is taken.
    """
    settings = coordinator.settings.server
    service = FederationService(coordinator, releases)
    server, port = await create_server(service, settings.host, settings.port)
    on_listening(join_address(settings.host, port))
    try:
        await _rounds(coordinator, service, stop, on_round)
        if coordinator.phase is Phase.FINISHED:
            await _linger(coordinator, service, stop, settings.linger)
            await asyncio.to_thread(on_finished)
            if settings.stay:
                await stop.wait()
    finally:
        service.close()
        # What gRPC has taken over is not with the client yet: over a thin link that takes a while.
        finished = coordinator.phase is Phase.FINISHED
        await server.stop(settings.linger if finished else GRACE_SECONDS)
    return coordinator.phase is Phase.FINISHED


async def _rounds(
    coordinator: Coordinator,
    service: FederationService,
    stop: asyncio.Event,
    on_round: Callable[[], None],
) -> None:
    known = None
    while not stop.is_set() and coordinator.phase is not Phase.FINISHED:
        state = await asyncio.to_thread(coordinator.tick)
        if state.phase is Phase.AGGREGATING:
            await asyncio.to_thread(coordinator.aggregate)
            await asyncio.to_thread(on_round)
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
