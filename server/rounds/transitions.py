"""The life of a run as a pure transition table: no I/O, no clock, time is in the events.

`python -m featherfed.server.rounds.transitions` prints the table as the diagram in docs/design.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from featherfed.server.rounds.growing_set import GrowingSet


class Phase(StrEnum):
    """The phase that a run is in."""

    GATHERING = "gathering"
    """Waiting for enough clients to open the next round."""
    TRAINING = "training"
    """A round is open: its cohort trains and reports."""
    AGGREGATING = "aggregating"
    """A round is closed: the server folds its updates into the next model version."""
    FINISHED = "finished"
    """All rounds are done."""


@dataclass(frozen=True)
class Policy:
    """How rounds open and close; times in seconds."""

    rounds: int
    minimum: int
    """Clients that must be present for the first round to open."""
    fraction: float = 1.0
    """Share of the present clients that is sampled into a round's cohort."""
    quorum: float = 0.5
    """Share of the cohort that must have reported for the deadline to close a round."""
    deadline: float = 600.0
    """Seconds from a round's opening until a quorum closes it."""
    patience: float = 30.0
    """How long a later round waits for known clients that are away; then a quorum of `minimum`
    opens it."""
    seed: int = 0
    """Draws cohorts and slots; secret, or clients could tell whose forwarded update is whose."""
    min_updates: int = 1
    """Updates that the aggregation rule needs: no round opens or closes with fewer."""
    over_selection: float = 1.0
    """Factor by which more clients are sampled than wanted; the round closes once as many as wanted
    have reported (Bonawitz et al., Towards Federated Learning at Scale, 2019)."""
    paused: bool = False
    """Whether no round may open."""

    def wanted(self, present: int) -> int:
        """Return how many of the `present` clients a round wants updates of, at least one."""
        return max(1, self.min_updates, math.ceil(self.fraction * present))

    def required(self, clients: int) -> int:
        """Return how many of `clients` make a quorum, at least as many as the rule needs."""
        return max(self.min_updates, math.ceil(self.quorum * clients))


@dataclass(frozen=True)
class RunState:
    """What must survive a restart. `since`: when the phase began, in seconds since the epoch."""

    phase: Phase = Phase.GATHERING
    round: int = 1
    since: float = 0.0
    cohort: tuple[str, ...] = ()
    """The round's clients in the order of their slots; later helpers stand at the end."""
    slots: int = 0
    """How many clients the round began with."""
    reported: GrowingSet = field(default_factory=GrowingSet)
    """Clients whose updates were accepted."""
    required: int = 0
    """How many reports are a quorum."""
    lost: frozenset[str] = frozenset()
    """Clients that missed the deadline or fell silent, and have made no call since."""
    wanted: int = 0
    """How many reports close the round; 0 in states of older versions: all of the cohort."""
    late: frozenset[str] = frozenset()
    """Clients that may still train for a round that closed without them: no round waits for them
    until they ask for a task."""


@dataclass(frozen=True)
class Tick:
    """Time passed.

    `present`: clients that wait for a task. `known`: all that ever joined. `silent`: clients that
    have made no call for longer than a client in training ever goes without one.
    """

    now: float
    present: frozenset[str]
    known: frozenset[str]
    silent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reported:
    """An update of `client` was written to the journal."""

    now: float
    client: str


@dataclass(frozen=True)
class Heard:
    """`client` asked for a task, so it is neither lost nor late any more."""

    now: float
    client: str


@dataclass(frozen=True)
class Aggregated:
    """The next model version was stored. `enough`: the run's target is reached."""

    now: float
    enough: bool = False


@dataclass(frozen=True)
class Extended:
    """The run's number of rounds was raised."""

    now: float


@dataclass(frozen=True)
class Resumed:
    """Rounds may open again after a pause."""

    now: float


Event = Tick | Reported | Heard | Aggregated | Extended | Resumed


def sample(present: Iterable[str], policy: Policy, round_: int) -> tuple[str, ...]:
    """Return a round's cohort in random order, drawn from `present` by the policy's seed."""
    names = sorted(present)
    count = math.ceil(policy.wanted(len(names)) * policy.over_selection)
    order = np.argsort(np.random.Philox(key=[policy.seed, round_]).random_raw(len(names)))
    return tuple(names[i] for i in order[:count])


def _gather(state: RunState, event: Tick, policy: Policy) -> RunState:
    """Open the round when all known clients are present, or enough are and patience has run out.

    A run that was made shorter than that finishes with the round before.
    """
    if state.round > policy.rounds:
        return replace(state, phase=Phase.FINISHED, round=state.round - 1, since=event.now)
    state = _lose_silent(state, event)
    if policy.paused or clients_missing(state, event, policy):
        return state
    cohort = sample(event.present, policy, state.round)
    if len(cohort) < policy.min_updates:
        return state
    wanted = policy.wanted(len(event.present))
    return replace(
        state,
        phase=Phase.TRAINING,
        since=event.now,
        cohort=cohort,
        slots=len(cohort),
        reported=GrowingSet(),
        required=policy.required(wanted),
        wanted=wanted,
        # Patience is granted once: the next round does not wait for clients that were away now.
        lost=state.lost | (event.known - event.present - state.late),
    )


def clients_missing(state: RunState, event: Tick, policy: Policy) -> int:
    """Return how many more clients must be present for the next round to open."""
    waited = event.now - state.since >= policy.patience
    if state.round == 1:
        enough = policy.minimum
    elif waited:
        enough = policy.required(policy.minimum)
    else:
        enough = len(event.known - state.lost - state.late)
    return max(0, max(1, enough) - len(event.present))


def due(state: RunState, now: float, policy: Policy) -> float:
    """Return when time alone may next open or close a round; infinity if it cannot."""
    limits = {Phase.TRAINING: policy.deadline, Phase.GATHERING: policy.patience}
    if state.phase not in limits or (state.phase is Phase.GATHERING and state.round == 1):
        return math.inf
    at = state.since + limits[state.phase]
    return at if at > now else math.inf


def _report(state: RunState, event: Reported, policy: Policy) -> RunState:
    """Count the client as reported; close the round if it is due."""
    reported, lost = state.reported.with_one(event.client), state.lost - {event.client}
    return _close_if_due(replace(state, reported=reported, lost=lost), event.now, policy)


def _pass_time(state: RunState, event: Tick, policy: Policy) -> RunState:
    """Close the round if it is due; add present clients to the cohort if the quorum is missed."""
    state = _lose_silent(state, event)
    overdue = event.now - state.since >= policy.deadline
    if len(state.reported) < state.required and (overdue or not _awaits_any(state)):
        helpers = sorted(event.present - set(state.cohort))
        state = replace(state, cohort=(*state.cohort, *helpers))
    return _close_if_due(state, event.now, policy)


def _awaited(state: RunState) -> frozenset[str]:
    """Return those of the cohort that may still report."""
    return frozenset(state.cohort) - state.reported - state.lost


def _awaits_any(state: RunState) -> bool:
    """Whether anyone of the cohort may still report; mostly without looking at each client."""
    surely = len(state.reported) + len(state.lost) < len(state.cohort)
    return surely or bool(_awaited(state))


def _lose_silent(state: RunState, event: Tick) -> RunState:
    """Mark silent clients of the cohort, and late ones, as lost; unmark those that call again."""
    if not event.silent and not state.lost:
        return state
    open_ = frozenset(state.cohort) - state.reported
    lost = (state.lost - open_) | (event.silent & (open_ | state.late))
    return replace(state, lost=lost, late=state.late - lost)


def _close_if_due(state: RunState, now: float, policy: Policy) -> RunState:
    """Close once the wanted number has reported, or a quorum and nobody is awaited in time."""
    overdue = now - state.since >= policy.deadline
    quorum = len(state.reported) >= state.required
    enough = len(state.reported) >= (state.wanted or len(state.cohort))
    if not enough and not (quorum and (overdue or not _awaits_any(state))):
        return state
    awaited = _awaited(state)
    closed = replace(state, phase=Phase.AGGREGATING, since=now)
    if overdue:  # only a missed deadline counts as lost; a client not needed is merely late
        return replace(closed, lost=state.lost | awaited)
    return replace(closed, late=state.late | awaited)


def _hear(state: RunState, event: Heard, policy: Policy) -> RunState:
    return replace(state, lost=state.lost - {event.client}, late=state.late - {event.client})


def _advance(state: RunState, event: Aggregated, policy: Policy) -> RunState:
    """Begin the next round, or finish the run."""
    if event.enough or state.round >= policy.rounds:
        return replace(state, phase=Phase.FINISHED, since=event.now)
    return RunState(round=state.round + 1, since=event.now, lost=state.lost, late=state.late)


def _extend(state: RunState, event: Extended, policy: Policy) -> RunState:
    """Begin the round after the last one."""
    return RunState(round=state.round + 1, since=event.now, lost=state.lost, late=state.late)


def _resume(state: RunState, event: Resumed, policy: Policy) -> RunState:
    """Let the round to come wait for its clients anew."""
    return replace(state, since=event.now)


def _ignore(state: RunState, event: Event, policy: Policy) -> RunState:
    return state


TABLE: dict[tuple[Phase, type[Event]], tuple[Callable[..., RunState], tuple[Phase, ...]]] = {
    (Phase.GATHERING, Tick): (_gather, (Phase.GATHERING, Phase.TRAINING, Phase.FINISHED)),
    (Phase.GATHERING, Heard): (_hear, (Phase.GATHERING,)),
    (Phase.GATHERING, Resumed): (_resume, (Phase.GATHERING,)),
    (Phase.TRAINING, Tick): (_pass_time, (Phase.TRAINING, Phase.AGGREGATING)),
    (Phase.TRAINING, Reported): (_report, (Phase.TRAINING, Phase.AGGREGATING)),
    (Phase.TRAINING, Heard): (_hear, (Phase.TRAINING,)),
    (Phase.TRAINING, Resumed): (_ignore, (Phase.TRAINING,)),
    (Phase.AGGREGATING, Tick): (_ignore, (Phase.AGGREGATING,)),
    (Phase.AGGREGATING, Heard): (_hear, (Phase.AGGREGATING,)),
    (Phase.AGGREGATING, Aggregated): (_advance, (Phase.GATHERING, Phase.FINISHED)),
    (Phase.AGGREGATING, Resumed): (_ignore, (Phase.AGGREGATING,)),
    (Phase.FINISHED, Tick): (_ignore, (Phase.FINISHED,)),
    (Phase.FINISHED, Heard): (_ignore, (Phase.FINISHED,)),
    (Phase.FINISHED, Resumed): (_ignore, (Phase.FINISHED,)),
    (Phase.FINISHED, Extended): (_extend, (Phase.GATHERING,)),
}
"""Every legal move: the function that makes it and the phases it may lead to."""


def transition(state: RunState, event: Event, policy: Policy) -> RunState:
    """Return the state after `event`; raise KeyError for a move that is not in the table."""
    move, allowed = TABLE[state.phase, type(event)]
    after = move(state, event, policy)
    assert after.phase in allowed, f"{state.phase} may not become {after.phase}"
    return after


def diagram() -> str:
    """Return the table as a Mermaid state diagram, moves that stay in a phase left out."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.GATHERING}"]
    for (phase, event), (_, targets) in TABLE.items():
        lines += [f"    {phase} --> {t}: {event.__name__}" for t in targets if t is not phase]
    return "\n".join([*lines, f"    {Phase.FINISHED} --> [*]"])


if __name__ == "__main__":
    print(diagram())
