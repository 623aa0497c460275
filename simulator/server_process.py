"""A simulated server process: store, coordinator and the real loop, on a simulated disk."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.loop import serve
from featherfed.server.rounds.clock import SteadyClock
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.simulator.database import ServerDisk
from featherfed.simulator.event_loop import SimulatedLoop
from featherfed.simulator.faults import SERVER
from featherfed.simulator.grpc_server import SimulatedServer
from featherfed.simulator.network import Network
from featherfed.simulator.scheduler import Process, Scheduler
from featherfed.simulator.training import MANIFEST, TASK, DistanceEvaluator

LONGEST_EVALUATION = 0.5
"""Most seconds that evaluating a model takes."""


class ServerProcess(Process):
    """One life of the server, from its start to its end or death."""

    def __init__(
        self,
        scheduler: Scheduler,
        number: int,
        network: Network,
        disk: ServerDisk,
        draw: random.Random,
        on_error: Callable[[str], None],
    ) -> None:
        """`number`: how many lives came before; `on_error` is told of what nobody expects."""
        super().__init__(scheduler, SERVER)
        self.number = number
        self.finished: bool | None = None
        """What `serve` returned, None before that."""
        self.opened = False
        """Whether its run is open."""
        self.grpc: SimulatedServer | None = None
        self._network = network
        self.disk = disk
        self._draw = draw
        self._on_error = on_error
        self.on_death.append(disk.crash)
        self.loop = SimulatedLoop(self, draw, on_error)
        self.stop = asyncio.Event()

    def start(self, settings: dict[str, Any], on_open: Callable[[], None],
              on_round: Callable[[], None], on_end: Callable[[], None]) -> None:  # fmt: skip
        """Begin to serve; `on_open` is called once the run is open, `on_round` after each round."""

        def begin() -> None:
            try:
                self.store = Store(self.disk.path)
                self.coordinator = self._coordinator(settings)
            except (ServerError, CannotStore):
                if not self.disk.full:
                    raise
                self.kill()  # `featherfed serve` says that there is no room, and ends
                return
            on_open()
            self.loop.call_soon(lambda: self.loop.create_task(main()))

        async def main() -> None:
            try:
                self.finished = await serve(
                    self.coordinator, on_listening=lambda address: None, on_round=on_round,
                    on_finished=lambda: None, stop=self.stop,
                )  # fmt: skip
                await self.loop.run_in_executor(None, self.store.close)
            except Exception as error:
                if self.alive:
                    self._on_error(f"the server ended by {type(error).__name__}: {error}")
                return
            on_end()

        self.spawn(begin, self._draw.uniform(0.1, 1))

    def make_server(self, interceptors: Any, options: Any, maximum_concurrent_rpcs: int) -> Any:
        """Return what `grpc.aio.server` would."""
        self.grpc = SimulatedServer(
            self._network, self, self.number, self._on_error, interceptors, maximum_concurrent_rpcs
        )
        return self.grpc

    def _coordinator(self, settings: dict[str, Any]) -> Coordinator:
        checked = Settings.model_validate({**settings, "output": "simulated"})

        clock = SteadyClock(time.time, time.monotonic)  # the simulated ones

        def evaluate() -> None:
            self.scheduler.pause(self._draw.uniform(0, LONGEST_EVALUATION))

        evaluator = DistanceEvaluator(evaluate)
        return Coordinator(
            checked, self.store, make_plan(checked, TASK, "{}", MANIFEST), MANIFEST,
            TASK, evaluator if checked.evaluation.dataset else None, clock, secret=1,
        )  # fmt: skip
