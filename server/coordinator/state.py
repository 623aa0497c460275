"""The run's live state: one lock, and one class that changes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.importance import Allocation
from featherfed.proto import federation_pb2 as pb
from featherfed.server.observability import events
from featherfed.server.rounds.clock import begin_after_restart
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.transitions import (
    Event,
    Phase,
    Policy,
    RunState,
    Tick,
    transition,
)
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import ModelVersion, Scores
from featherfed.server.storage.store import Store


class Committed(NamedTuple):
    """What is on disk of a run's state: the state itself, and its newest version's facts."""

    state: RunState
    digest: bytes
    """Of the newest version."""
    allocation: Allocation | None
    """The importance of coordinates that is known with it."""


class LiveRun:
    """Holds the state that the coordinator's parts share; changes are stored before they show here.

    Hold `lock` to read several values that must belong together, and to change anything: a part
    that applies an event takes the lock around what it read for it. `committed` needs no lock.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        plan: pb.Plan,
        store: Store,
        clock: Callable[[], float],
        rounds: TotalRounds,
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
        self.rounds = rounds
        self.policy = replace(
            settings.policy,
            seed=store.runs.secret(),
            rounds=rounds.last,
            paused=store.controls.paused(),
        )
        self.on_phase: Callable[[], None] = lambda: None
        """Called, in any thread, once another phase is committed."""
        self.on_decision: Callable[[], None] = lambda: None
        """Called, in any thread, once what whoever runs the server decided is committed."""
        self.on_opening: list[Callable[[frozenset[str]], None]] = []
        """Called with the clients present as a round opens, in the transaction that opens it."""
        self.is_enough: Callable[[int, Scores], bool] = lambda round_, scores: False
        """Whether a new version ends the run: called with its number and the newest scores, in the
        transaction that stores it."""
        self._state = _take_up(store.load_state(), self.policy, self.began)
        newest = store.versions.newest()
        self._committed = Committed(self._state, newest.digest, newest.allocation)
        self._changing = False
        self._indexed: tuple[tuple[str, ...], dict[str, int]] = (), {}

    @property
    def state(self) -> RunState:
        """The phase, the round and who is in it; holders of the lock see their own changes."""
        return self._state

    @property
    def committed(self) -> Committed:
        """What is on disk; replaced as a whole, so its values belong together."""
        return self._committed

    @property
    def phase(self) -> Phase:
        """The phase the run is in."""
        return self._committed.state.phase

    @property
    def newest_digest(self) -> bytes:
        """The newest version's digest."""
        return self._committed.digest

    @property
    def newest_allocation(self) -> Allocation | None:
        """The importance of coordinates that is known with the newest version."""
        return self._committed.allocation

    def slot_of(self, client: str, state: RunState) -> int | None:
        """Return a client's slot in the round of `state`, None if its cohort lacks the client.

        Later helpers use slots a second time.
        """
        cohort, index = self._indexed
        if cohort is not state.cohort:  # made once for each cohort
            index = {client: index for index, client in enumerate(state.cohort)}
            self._indexed = state.cohort, index
        found = index.get(client)
        return None if found is None else found % state.slots

    @property
    def ledger_round(self) -> int:
        """The round that bytes sent now count in; rounds + 1 is the final model's delivery."""
        return self._state.round + (self._state.phase is Phase.FINISHED)

    def ledger_round_of(self, round_: int) -> int:
        """Return the round that bytes of an update count in, if its header says `round_`."""
        return min(round_, self.ledger_round)

    @contextmanager
    def change(self) -> Iterator[None]:
        """Hold the lock, and commit all changes of the block together, or none if it raises.

        As part of another such block, it is undone without the rest.
        """
        with self.lock:
            before, inner, self._changing = self._state, self._changing, True
            try:
                with self.store.attempt():
                    yield
                    if not inner:
                        self._save_state()
            except BaseException:
                self._state = before
                raise
            finally:
                self._changing = inner

    def _save_state(self) -> None:
        """Store the state if it has changed, all but the reports, which the journal knows."""
        before, after = self._committed.state, self._state
        if replace(after, reported=before.reported) != before:
            self.store.runs.save_state(after)

    def apply(self, event: Event, version: ModelVersion | None = None) -> None:
        """Change the state by `event`, and the newest version if one is stored with it."""
        with self.lock:
            before = self._state
            after = transition(before, event, self.policy)
            if after == before:
                return
            with self.change():
                if (before.phase, after.phase) == (Phase.GATHERING, Phase.TRAINING):
                    assert isinstance(event, Tick), "time alone opens a round"
                    self.store.journal.open_round(after.round, after.since, after.cohort)
                    for call in self.on_opening:
                        call(event.present)
                if (before.phase, after.phase) == (Phase.TRAINING, Phase.AGGREGATING):
                    self.store.journal.close_round(after.round, after.since, after.cohort)
                    self.store.transfers.drop_all()
                if before.phase is Phase.AGGREGATING and after.phase is not Phase.AGGREGATING:
                    self.store.publications.write_file(self.plan.run)
                self._state = after
                self.store.after_commit(lambda: self.adopt(before, after, version))

    def set_paused(self, paused: bool) -> None:
        """Store whether rounds may open; it holds from the commit on, for a caller of `change`."""
        self.store.controls.set_paused(paused)
        self.store.after_commit(lambda: self._decide(paused=paused))

    def change_rounds(self, total: TotalRounds) -> None:
        """Store another number of rounds, for a caller of `change`.

        It holds from the commit on.
        """
        self.store.runs.save_total(total)
        settings = self.settings.with_rounds(total)
        self.store.runs.save_settings(settings.as_text())

        def hold() -> None:
            self.rounds, self.settings = total, settings
            self.plan.rounds, self.plan.last_round = total.now, total.last
            self._decide(rounds=total.last)

        self.store.after_commit(hold)

    def _decide(self, **changes: Any) -> None:
        self.policy = replace(self.policy, **changes)
        self.on_decision()

    def adopt(self, before: RunState, after: RunState, version: ModelVersion | None) -> None:
        """Make a committed state, and the version committed with it, the live ones."""
        newest = self._committed[1:] if version is None else (version.digest, version.allocation)
        self._committed = Committed(after, *newest)
        events.state_changed(self.plan.run, before, after)
        if before.phase is not after.phase:
            self.on_phase()


def _take_up(state: RunState, policy: Policy, now: float) -> RunState:
    """Return a stored state with the time that clients get to come back after a restart."""
    if state.phase is Phase.GATHERING:
        return replace(state, since=now)
    if state.phase is Phase.TRAINING:
        limit, grace = policy.deadline, policy.patience
        return replace(state, since=begin_after_restart(state.since, now, limit=limit, grace=grace))
    return state
