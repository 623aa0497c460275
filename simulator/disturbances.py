"""Lets the faults of a run happen: at their times, or when a process reaches their places."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featherfed.simulator.faults import SERVER, Fault, Kind
from featherfed.simulator.network import (
    NOTICED_BY_CLIENT,
    NOTICED_BY_SERVER,
    Call,
    Connection,
    Link,
)
from featherfed.simulator.scheduler import START, Process

if TYPE_CHECKING:
    from featherfed.simulator.client_process import ClientProcess
    from featherfed.simulator.world import World

RESTART_SECONDS = 1.0
"""How long a process that nobody killed on purpose is away."""
CATCH_UP_SECONDS = 3.0
"""How long the server takes at most to write what it could not write before."""


class Disturbances:
    """The faults of one run, and what each has left behind."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._scheduler = world.scheduler
        self._places: dict[tuple[str, str], dict[int, list[Fault]]] = {}
        self._reached: Counter[tuple[str, str]] = Counter()
        self._offsets: dict[str, float] = {}
        self._after_death: dict[str, Callable[[], None]] = {}
        self.restart_after = RESTART_SECONDS
        """Seconds until the process that died last starts again."""
        self.noticed_after = 0.0
        """Seconds until clients notice that the server died."""
        self.server_behind_since = math.inf
        """Since when the server has not written all that waits in its memory."""
        self._keep_server_behind = 0
        faults = world.scenario.faults
        self.last = START + max((fault.end for fault in faults), default=0.0)
        """The time at which the last fault is over, as far as is known."""

    def arm(self) -> None:
        """Begin to wait for times and places."""
        for fault in self._world.scenario.faults:
            if fault.place:
                numbers = self._places.setdefault((fault.target, fault.place), {})
                numbers.setdefault(fault.nth, []).append(fault)
            else:
                self._scheduler.at(START + fault.at, None, self._happen, fault)
        self._world.network.on_message = self._message
        self._world.network.on_request = self._request

    def _happen(self, fault: Fault) -> None:
        self._scheduler.trace("fault", fault)
        {
            Kind.SILENCE: self._silence, Kind.SLOW: self._slow, Kind.FREEZE: self._freeze,
            Kind.FULL: self._fill, Kind.CLOCK: self._set_clock, Kind.STOP: self._stop,
            Kind.RESTORE: self._back_up, Kind.LOSE: self._lose,
        }[fault.kind](fault)  # fmt: skip

    def _note(self, fault: Fault) -> None:
        """Count a fault that takes place, and give the run time to recover from it."""
        self._world.happened[str(fault.kind)] += 1
        over = self._scheduler.now + fault.seconds + fault.amount * (fault.kind is Kind.CUT)
        self.last = max(self.last, over)

    def _due(self, target: str, place: str) -> list[Fault]:
        key = target, place
        if key not in self._places:
            return []
        self._reached[key] += 1
        return self._places[key].pop(self._reached[key], [])

    # ---- faults at places

    def reach(self, process: Process, place: str) -> None:
        """Let the faults happen that wait for a process at this place."""
        for fault in self._due(process.name, place.partition(" ")[0]):
            if fault.kind in (Kind.KILL, Kind.POWER):
                self._scheduler.trace("fault", fault, place)
                self._kill(process, fault)
            else:
                self._happen(fault)

    def _kill(self, process: Process, fault: Fault) -> None:
        if self._world.process(process.name) is not process:  # it has ended by itself
            return
        self._note(fault)
        self.restart_after = fault.seconds
        power = fault.kind is Kind.POWER
        if process.name == SERVER:
            self.noticed_after = NOTICED_BY_CLIENT if power else 0.0
            self._world.server_disk.loses_power = power
            if power and fault.place == "commit":
                return  # the disk tears this commit and kills
        elif power:
            self._after_death[process.name] = self._world.disk_of(process.name).lose_power
        process.kill()

    def leave_disk(self, client: ClientProcess) -> None:
        """Leave of a dead client's files what its death leaves."""
        self._after_death.pop(client.name, lambda: None)()

    def _message(self, connection: Connection) -> None:
        for fault in self._due(connection.client, "message"):
            if fault.kind is not Kind.CUT:
                self._happen(fault)
            elif not connection.client_cut:
                self._note(fault)
                self._world.network.cut(connection, fault.seconds, fault.amount)

    def _request(self, call: Call, message: bytes) -> None:
        for fault in self._due(call.connection.client, "request"):
            self._note(fault)
            self._scheduler.trace("fault", fault, call.method)
            self._world.network.repeat(call, message, fault.seconds)

    # ---- faults at times

    def _targets(self, fault: Fault) -> list[str]:
        if fault.target == "all":
            return [member.name for member in self._world.scenario.members]
        return [fault.target]

    def _silence(self, fault: Fault) -> None:
        self._note(fault)
        for client in self._targets(fault):
            self._world.network.silence(client, fault.seconds)

    def _slow(self, fault: Fault) -> None:
        self._note(fault)
        link, normal = self._world.network.link(fault.target), Link()
        link.bandwidth = normal.bandwidth / fault.amount
        link.delay = normal.delay * math.sqrt(fault.amount)

        def over() -> None:
            link.bandwidth, link.delay = normal.bandwidth, normal.delay

        self._scheduler.after(fault.seconds, None, over)

    def _freeze(self, fault: Fault) -> None:
        process = self._world.process(fault.target)
        if process is None or process.frozen:
            return
        self._note(fault)
        process.frozen = True
        self._scheduler.after(fault.seconds, None, process.thaw)
        if fault.target == SERVER:
            self._keep_behind(fault)
        network = self._world.network
        for connection in network.connections_of(fault.target):
            if fault.target == SERVER and fault.seconds > NOTICED_BY_CLIENT:
                network.cut(connection, NOTICED_BY_CLIENT, NOTICED_BY_CLIENT)
            elif fault.target != SERVER and fault.seconds > NOTICED_BY_SERVER:
                network.cut(connection, NOTICED_BY_SERVER, NOTICED_BY_SERVER)

    def _fill(self, fault: Fault) -> None:
        self._note(fault)
        disk = self._world.disk_of(fault.target)
        disk.full = True
        if fault.target == SERVER:
            self._keep_behind(fault)

        def over() -> None:
            disk.full = False

        self._scheduler.after(fault.seconds, None, over)

    def _keep_behind(self, fault: Fault) -> None:
        """Note that the server writes nothing during a fault, and then has to catch up."""
        self.server_behind_since = min(self.server_behind_since, self._scheduler.now)
        self._keep_server_behind += 1

        def written() -> None:
            self._keep_server_behind -= 1
            if not self._keep_server_behind:
                self.server_behind_since = math.inf

        self._scheduler.after(fault.seconds + CATCH_UP_SECONDS, None, written)

    def wall_offset(self, target: str) -> float:
        """Return by how much a machine's clock is wrong now."""
        return self._offsets.get(target, 0.0)

    def _set_clock(self, fault: Fault) -> None:
        self._note(fault)
        self._offsets[fault.target] = fault.amount
        process = self._world.process(fault.target)
        if process is not None:
            process.wall_offset = fault.amount

    def _stop(self, fault: Fault) -> None:
        server = self._world.server
        if server is not None and server.alive:
            self._note(fault)
            self.restart_after = RESTART_SECONDS
            server.loop.call_soon(server.stop.set)

    def _back_up(self, fault: Fault) -> None:
        if self._world.server is not None and self._world.server.opened:
            copy = self._world.back_up()
            self._scheduler.after(fault.seconds, None, self._restore, fault, copy)

    def _restore(self, fault: Fault, copy: Path) -> None:
        server = self._world.server
        if server is None or not server.alive:
            return
        self._note(fault)
        self.restart_after, self.noticed_after = RESTART_SECONDS, 0.0
        server.on_death.append(lambda: self._world.restore(copy))
        server.kill()

    def _lose(self, fault: Fault) -> None:
        process = self._world.process(fault.target)
        if process is not None:
            self._note(fault)
            self.restart_after = RESTART_SECONDS
            self._after_death[fault.target] = self._world.disk_of(fault.target).lose_all
            process.kill()
