"""Going on with a run beyond the rounds that it began with."""

from __future__ import annotations

import secrets
from dataclasses import replace

from featherfed.server.observability import events
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.transitions import Extended, Phase, RunState, transition
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store


def extend(settings: Settings, store: Store, run: str, now: float) -> TotalRounds:
    """Raise the run's number of rounds to that of `settings`; return what it has then.

    It holds from the first round on that has not opened yet. A run that has ended goes on, unless
    its target is still reached; its clients join again, to learn of it. Settings make no run
    shorter, and one that was ended early stays so until they want more rounds than it ever had.
    """
    total = store.runs.total_rounds(settings.rounds)
    planned = max(total.planned, store.controls.planned())
    if settings.rounds <= planned:
        if total.now < planned:
            events.still_ended(run, total.now, planned)
        elif settings.rounds < total.now:
            events.rounds_kept(run, settings.rounds, total.now)
        return _go_on(settings, store, run, now, total)
    begin = next_round(store.load_state())
    total = total.changed(begin, settings.rounds)
    with store.transaction():
        store.runs.save_total(total)
        store.clients.end_sessions(secrets.randbits(62))
    events.rounds_raised(run, begin, settings.rounds)
    return _go_on(settings, store, run, now, total)


def next_round(state: RunState) -> int:
    """Return the first round that has not opened."""
    return state.round + (state.phase is not Phase.GATHERING)


def _go_on(
    settings: Settings, store: Store, run: str, now: float, total: TotalRounds
) -> TotalRounds:
    """Open a run again that has ended, and has rounds left that nothing forbids."""
    state = store.load_state()
    if state.phase is not Phase.FINISHED or state.round >= total.last:
        return total
    if _is_reached(settings, store, state):
        events.target_still_reached(run, state.round, total.now)
        return total
    after = transition(state, Extended(now), replace(settings.policy, rounds=total.last))
    with store.transaction():
        store.runs.save_state(after)
    return total


def _is_reached(settings: Settings, store: Store, state: RunState) -> bool:
    known = store.versions.newest_evaluated()
    return known is not None and settings.is_reached(known.scores or {}, state.round)
