"""Says what a server waits for: below a terminal's log lines, or in log lines now and then."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from featherfed.api.announce import is_local_only
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.observability import events
from featherfed.server.rounds.transitions import Phase
from featherfed.server.settings.settings import Settings

LOOK_SECONDS = 1.0
"""How often it is looked what the server waits for."""
FIRST_REPEAT, LONGEST_REPEAT = 60.0, 3600.0
"""Seconds after which an unchanged state is logged again; they double each time."""


class Waiting(NamedTuple):
    """What a run waits for."""

    phase: Phase
    round: int
    done: int
    """Clients that are there, or have reported in the open round."""
    wanted: int
    """Clients that open the round, or close it."""
    deadline: float | None
    """Seconds until a quorum closes the round."""

    @property
    def missing(self) -> int:
        """How many clients the run waits for."""
        return max(0, self.wanted - self.done)


def waiting(coordinator: Coordinator) -> Waiting:
    """Return what a run waits for now; takes no lock that a commit holds."""
    run = coordinator.run
    state, policy = run.committed.state, run.policy
    if state.phase is Phase.GATHERING:
        present = len(coordinator.presence.present())
        return Waiting(state.phase, state.round, present, policy.minimum, None)
    if state.phase is Phase.TRAINING:
        left = max(0.0, state.since + policy.deadline - run.clock())
        wanted = state.wanted or len(state.cohort)
        return Waiting(state.phase, state.round, len(state.reported), wanted, left)
    return Waiting(state.phase, state.round, 0, 0, None)


def join_line(settings: Settings, address: str) -> str:
    """Return the command that joins a client to the server that listens at `address`, HOST:PORT."""
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "[::]", ""):  # an address for listening alone
        address = f"{socket.gethostname()}:{port}"
    line = f"featherfed join {address} --data FILE"
    if settings.security.credentials is not None:
        return line + " --credentials FOLDER"
    return line if is_local_only(host.strip("[]")) else line + " --insecure"


class ServerStatus:
    """Tells once a second what a run waits for, if anybody sees it."""

    def __init__(
        self, coordinator: Coordinator, join: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._coordinator = coordinator
        self._join = join
        self._clock = clock
        self._told: tuple[Phase, int, int] | None = None
        self._again_at = 0.0
        self._repeat = FIRST_REPEAT

    async def tell(self) -> None:
        """Go on telling until this is cancelled."""
        with tqdm(bar_format="{desc}", leave=False, disable=None, dynamic_ncols=True) as line:
            while True:
                now = waiting(self._coordinator)
                line.set_description_str(self.text(now))
                self.log(now, repeated=bool(line.disable))
                await asyncio.sleep(LOOK_SECONDS)

    def text(self, now: Waiting) -> str:
        """Return the line below the log."""
        if now.phase is Phase.GATHERING:
            if not now.missing:
                return f"round {now.round} opens soon; {now.done} clients are here"
            return f"waiting for {now.missing} more clients; join one: {self._join}"
        if now.phase is Phase.TRAINING:
            left = f"; closes in {now.deadline:.0f} s at the latest" if now.deadline else ""
            return f"round {now.round}: {now.done} of {now.wanted} clients have reported{left}"
        if now.phase is Phase.AGGREGATING:
            return f"round {now.round}: aggregating"
        return "all rounds are done"

    def log(self, now: Waiting, repeated: bool) -> None:
        """Log what the run waits for when clients come or go, and with `repeated` now and then."""
        waits = now.phase is Phase.GATHERING and now.missing > 0
        state, at = (now.phase, now.round, now.done if waits else 0), self._clock()
        if state != self._told:
            due, self._told, self._repeat = waits, state, FIRST_REPEAT
        elif due := repeated and at >= self._again_at:
            self._repeat = min(2 * self._repeat, LONGEST_REPEAT)
        else:
            return
        self._again_at = at + self._repeat
        run = self._coordinator.plan.run
        if due and waits:
            events.waiting_for_clients(run, now.missing, now.wanted, self._join)
        elif due and now.phase is Phase.TRAINING:
            events.round_goes_on(run, now.round, now.done, now.wanted, now.deadline)
