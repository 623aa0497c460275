"""Looks at the server every few seconds: at rounds that should have ended, and at its memory."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from featherfed.server.loop import LONGEST_PAUSE_SECONDS
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.storage.records import ModelVersion
from featherfed.simulator.invariants import Violation

if TYPE_CHECKING:
    from featherfed.simulator.server_process import ServerProcess
    from featherfed.simulator.world import World

EVERY_SECONDS = 5.0
ROUND_GRACE = 30.0
"""Seconds after its deadline within which a round with a quorum must have closed."""
MAX_CALLS = 16
"""Most calls of one client that may be open at the same time."""
MAX_TASKS = 40
"""Most tasks of the server beside those of open calls."""


class Patrol:
    """Checks a running server from outside."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._round: tuple[int, int] = 0, 0
        self._seconds = 0.0

    def begin(self) -> None:
        """Look now, and again and again."""
        server = self._world.server
        if server is not None and server.alive and server.opened and not server.frozen:
            try:
                self._check_round(server)
                self._check_memory(server)
            except Violation as violation:
                self._world.violate(str(violation))
        self._world.scheduler.after(EVERY_SECONDS, None, self.begin)

    def follow(self, server: ServerProcess) -> None:
        """See every change of a server's round, to check that none closes too early."""
        run, opened = server.coordinator.run, -math.inf
        adopt = run.adopt

        def adopt_and_check(
            before: RunState, after: RunState, version: ModelVersion | None
        ) -> None:
            nonlocal opened
            now = self._world.scheduler.now
            if after.phase is Phase.TRAINING and before.phase is not Phase.TRAINING:
                opened = now
            if before.phase is Phase.TRAINING and after.phase is Phase.AGGREGATING:
                self._check_close(before, after, now - opened, run.policy.deadline)
            adopt(before, after, version)

        run.adopt = adopt_and_check  # type: ignore[method-assign]

    def _check_close(
        self, before: RunState, closed: RunState, seconds: float, deadline: float
    ) -> None:
        """A round closes before its deadline only if nobody is awaited, or enough have reported.

        With heartbeats, a silent client is not awaited any more.
        """
        awaited = set(closed.cohort) - closed.reported - before.lost
        enough = len(closed.reported) >= closed.wanted
        if self._world.scenario.heartbeat or enough:
            return
        if awaited and seconds < deadline - LONGEST_PAUSE_SECONDS:
            self._world.violate(
                f"round {closed.round} closed after {seconds:.1f} s of {deadline:.0f}, without "
                f"{', '.join(sorted(awaited))}"
            )

    def _check_round(self, server: ServerProcess) -> None:
        """A round closes soon after its deadline once it has a quorum."""
        state, policy = server.coordinator.run.state, server.coordinator.run.policy
        waits = state.phase is Phase.TRAINING and len(state.reported) >= state.required
        waits = waits and not server.disk.full
        known = server.number, state.round
        self._seconds = self._seconds + EVERY_SECONDS if waits and known == self._round else 0.0
        self._round = known
        if self._seconds > policy.deadline + ROUND_GRACE:
            raise Violation(
                f"round {state.round} has had its quorum for {self._seconds:.0f} s, and is open"
            )

    def _check_memory(self, server: ServerProcess) -> None:
        """What the server holds is bounded by settings and by the number of clients."""
        if server.grpc is None or server.grpc.service is None:
            return
        calls = Counter(server.grpc.callers())
        for client, number in sorted(calls.items()):
            if number > MAX_CALLS:
                raise Violation(f"{number} calls of {client} are open")
        tasks = server.loop.open_tasks - 3 * calls.total()  # reads and writes that nobody awaits
        if tasks > MAX_TASKS:
            raise Violation(f"the server has {tasks} tasks that belong to no call")
        uploads = server.grpc.service._uploads
        limit = server.coordinator.settings.limits.queued_bytes
        if uploads._queue._reserved > limit:
            raise Violation(f"{uploads._queue._reserved} bytes are reserved, more than {limit}")
        if len(uploads._leases._leases) > len(self._world.scenario.members):
            raise Violation("more uploads are under way than there are clients")
