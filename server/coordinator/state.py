"""The run's live state: one lock, and one class that changes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.importance import Allocation
from featherfed.proto import federation_pb2 as pb
from featherfed.server.observability import events
from featherfed.server.rounds.clock import begin_after_restart
from featherfed.server.rounds.transitions import (
    Event,
    Phase,
    Policy,
    RunState,
    transition,
)
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import ModelVersion
from featherfed.server.storage.store import Store


class LiveRun:
    """Holds the state that the coordinator's parts share; changes are stored before they show here.

    Hold `lock` to read several values that must belong together, and to change anything: a part
    that applies an event takes the lock around what it read for it.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        plan: pb.Plan,
        store: Store,
        clock: Callable[[], float],
    ) -> None:
        """Take up the run that `store` holds; `clock`: seconds since the epoch, never set back."""
        self.settings = settings
        self.manifest = manifest
        self.plan = plan
        self.store = store
        self.clock = clock
        self.lock = threading.RLock()
        self.began = clock()
        """When this process took up the run."""
        self.policy = replace(settings.policy, seed=store.runs.secret())
        self._state = _take_up(store.load_state(), self.policy, self.began)
        self._indexed: tuple[tuple[str, ...], dict[str, int]] = (), {}
        newest = store.versions.newest()
        self._newest = newest.digest, newest.allocation

    @property
    def state(self) -> RunState:
        """The phase, the round and who is in it."""
        return self._state

    @property
    def phase(self) -> Phase:
        """The phase the run is in."""
        return self._state.phase

    @property
    def newest_digest(self) -> bytes:
        """The newest version's digest."""
        return self._newest[0]

    @property
    def newest_allocation(self) -> Allocation | None:
        """The importance of coordinates that is known with the newest version."""
        return self._newest[1]

    def in_cohort(self, client: str) -> bool:
        """Whether the current round's cohort has this client."""
        return client in self._cohort_index()

    def slot_of(self, client: str) -> int:
        """Return the slot of a client of the cohort; later helpers use slots a second time."""
        return self._cohort_index()[client] % self._state.slots

    def _cohort_index(self) -> dict[str, int]:
        """Return each client's index in the cohort; it is made once for each cohort."""
        cohort = self._state.cohort
        if self._indexed[0] is not cohort:
            self._indexed = cohort, {client: index for index, client in enumerate(cohort)}
        return self._indexed[1]

    @property
    def ledger_round(self) -> int:
        """The round that bytes sent now count in; rounds + 1 is the final model's delivery."""
        return self._state.round + (self._state.phase is Phase.FINISHED)

    def ledger_round_of(self, round_: int) -> int:
        """Return the round that bytes of an update count in, if its header says `round_`."""
        return min(round_, self.ledger_round)

    def apply(self, event: Event) -> None:
        """Store the state after `event`, then adopt it; do nothing if the state stays the same."""
        if transition(self._state, event, self.policy) == self._state:
            return
        with self.store.transaction():
            after = self.write(event)
        self.adopt(after)

    def write(self, event: Event) -> RunState:
        """Store and return the state after `event`, as part of the caller's transaction.

        The caller adopts the state once the transaction is committed.
        """
        before = self._state
        after = transition(before, event, self.policy)
        if after != before:
            if (before.phase, after.phase) == (Phase.GATHERING, Phase.TRAINING):
                self.store.journal.open_round(after.round, after.since, after.cohort)
            if (before.phase, after.phase) == (Phase.TRAINING, Phase.AGGREGATING):
                self.store.journal.close_round(after.round, after.since, after.cohort)
                self.store.transfers.drop_all()
            if before.phase is Phase.AGGREGATING and after.phase is not Phase.AGGREGATING:
                self.store.publications.write_file(self.plan.run)
            if replace(after, reported=before.reported) != before:  # the journal knows the rest
                self.store.runs.save_state(after)
        return after

    def adopt(self, after: RunState, version: ModelVersion | None = None) -> None:
        """Make a committed state, and the version committed with it, the live ones."""
        before, self._state = self._state, after
        if version is not None:
            self._newest = version.digest, version.allocation
        events.state_changed(self.plan.run, before, after)


def _take_up(state: RunState, policy: Policy, now: float) -> RunState:
    """Return a stored state with the time that clients get to come back after a restart."""
    if state.phase is Phase.GATHERING:
        return replace(state, since=now)
    if state.phase is Phase.TRAINING:
        limit, grace = policy.deadline, policy.patience
        return replace(state, since=begin_after_restart(state.since, now, limit=limit, grace=grace))
    return state
