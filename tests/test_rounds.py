from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from featherfed.server.rounds.transitions import (
    TABLE,
    Aggregated,
    Event,
    Heard,
    Phase,
    Policy,
    Reported,
    RunState,
    Tick,
    diagram,
    sample,
    transition,
)

POLICY = Policy(rounds=2, minimum=3, quorum=0.6, deadline=100, patience=10)
ALL = frozenset("abc")


def tick(now: float, present: str = "abc", known: str = "abc") -> Tick:
    return Tick(now, frozenset(present), frozenset(known))


def run(*events: Event, state: RunState | None = None, policy: Policy = POLICY) -> RunState:
    state = state or RunState()
    for event in events:
        state = transition(state, event, policy)
    return state


def test_the_first_round_waits_for_the_minimum_however_long() -> None:
    assert run(tick(0, "ab"), tick(1e6, "ab")).phase is Phase.GATHERING
    opened = run(tick(0, "ab"), tick(5))
    assert (opened.phase, set(opened.cohort), opened.required) == (Phase.TRAINING, ALL, 2)


def test_a_round_closes_when_all_have_reported() -> None:
    some = run(tick(0), Reported(1, "a"), Reported(2, "b"), tick(3))
    assert some.phase is Phase.TRAINING
    closed = run(Reported(4, "c"), state=some)
    assert (closed.phase, closed.lost) == (Phase.AGGREGATING, frozenset())


def test_a_quorum_closes_a_round_at_the_deadline_and_not_before() -> None:
    some = run(tick(0), Reported(1, "a"), Reported(2, "b"))
    assert run(tick(99), state=some).phase is Phase.TRAINING
    closed = run(tick(100), state=some)
    assert (closed.phase, closed.lost) == (Phase.AGGREGATING, {"c"})


def test_without_a_quorum_the_deadline_asks_whoever_is_present() -> None:
    late = run(tick(0), Reported(1, "a"), tick(100, "ad", "abcd"))
    assert (late.phase, set(late.cohort)) == (Phase.TRAINING, set("abcd"))
    closed = run(Reported(120, "d"), state=late)
    assert (closed.phase, closed.lost) == (Phase.AGGREGATING, {"b", "c"})


def test_a_lost_client_is_not_waited_for_until_it_is_heard_of() -> None:
    second = run(tick(0), Reported(1, "a"), Reported(2, "b"), tick(100), Aggregated(101))
    assert (second.phase, second.round, second.lost) == (Phase.GATHERING, 2, {"c"})
    assert set(run(tick(101, "ab"), state=second).cohort) == {"a", "b"}
    heard = run(Heard(101, "c"), state=second)
    assert run(tick(102, "ab"), state=heard).phase is Phase.GATHERING
    assert set(run(tick(102), state=heard).cohort) == ALL


def test_known_clients_that_are_away_get_their_patience_and_no_more() -> None:
    second = RunState(round=2, since=200)
    assert run(tick(209, "ab"), state=second).phase is Phase.GATHERING
    assert set(run(tick(210, "ab"), state=second).cohort) == {"a", "b"}
    assert run(tick(1e6, "a"), state=second).phase is Phase.GATHERING, "one is no quorum of three"


def test_after_a_restart_the_others_are_waited_for() -> None:
    policy = replace(POLICY, minimum=2)
    second = RunState(round=2, since=200)
    assert run(tick(201, "ab"), state=second, policy=policy).phase is Phase.GATHERING
    assert set(run(tick(202, "abc"), state=second, policy=policy).cohort) == ALL


OVER = Policy(
    rounds=3, minimum=10, fraction=0.5, quorum=0.6, deadline=100, patience=10, over_selection=1.5
)
TEN = "abcdefghij"


def over(*events: Event, state: RunState | None = None) -> RunState:
    return run(tick(0, TEN, TEN), *events, state=state, policy=OVER)


def test_over_selection_closes_with_those_who_were_wanted() -> None:
    opened = over()
    assert (opened.slots, opened.wanted, opened.required) == (8, 5, 3)
    reports = [Reported(1, client) for client in opened.cohort]
    assert over(*reports[:4]).phase is Phase.TRAINING
    closed = over(*reports[:5])
    assert (closed.phase, closed.lost) == (Phase.AGGREGATING, frozenset())
    assert closed.late == set(opened.cohort[5:])


def test_the_late_are_neither_waited_for_nor_asked_until_they_ask() -> None:
    opened = over()
    late = opened.cohort[5:]
    closed = over(*[Reported(1, client) for client in opened.cohort[:5]], Aggregated(2))
    here = "".join(sorted(set(TEN) - set(late)))
    second = run(tick(3, here, TEN), state=closed, policy=OVER)
    assert (second.phase, second.late) == (Phase.TRAINING, set(late))
    asked = run(Heard(3, late[0]), state=closed, policy=OVER)
    assert asked.late == set(late[1:])
    assert run(tick(4, here, TEN), state=asked, policy=OVER).phase is Phase.GATHERING
    silent = Tick(3, frozenset(), frozenset(TEN), frozenset(late))
    gone = run(silent, state=closed, policy=OVER)
    assert (gone.late, gone.lost) == (frozenset(), set(late))


def test_at_the_deadline_over_selected_clients_are_lost_like_others() -> None:
    opened = over()
    closed = over(*[Reported(1, client) for client in opened.cohort[:3]], tick(100, "", TEN))
    assert (closed.phase, closed.late) == (Phase.AGGREGATING, frozenset())
    assert closed.lost == set(opened.cohort[3:])


def silent(now: float, clients: str, present: str = "") -> Tick:
    return Tick(now, frozenset(present), ALL, frozenset(clients))


def test_a_round_does_not_wait_for_the_silent() -> None:
    some = run(tick(0), Reported(1, "a"), Reported(2, "b"))
    closed = run(silent(30, "c"), state=some)
    assert (closed.phase, closed.lost) == (Phase.AGGREGATING, {"c"})
    dead_first = run(tick(0), silent(30, "c"))
    assert (dead_first.phase, dead_first.lost) == (Phase.TRAINING, {"c"})
    closed = run(Reported(31, "a"), Reported(32, "b"), state=dead_first)
    assert (closed.phase, closed.lost) == (Phase.AGGREGATING, {"c"})


def test_a_silent_client_that_is_heard_of_again_is_waited_for_again() -> None:
    dead = run(tick(0), silent(30, "c"))
    for event in (silent(31, ""), Heard(31, "c")):
        back = run(event, Reported(32, "a"), Reported(33, "b"), state=dead)
        assert (back.phase, back.lost) == (Phase.TRAINING, frozenset())
    reported = run(Reported(31, "c"), state=dead)
    assert (reported.reported, reported.lost) == ({"c"}, frozenset())


def test_without_a_quorum_of_the_living_others_are_asked_at_once() -> None:
    some = run(tick(0), Reported(1, "a"), silent(30, "bc", present="ad"))
    assert (some.phase, set(some.cohort)) == (Phase.TRAINING, set("abcd"))
    assert run(Reported(31, "d"), state=some).phase is Phase.AGGREGATING


def test_a_run_ends_after_its_last_round() -> None:
    closing = RunState(phase=Phase.AGGREGATING, round=2)
    end = run(Aggregated(9), state=closing)
    assert end.phase is Phase.FINISHED
    assert run(tick(10), Heard(11, "a"), state=end) == end


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.AGGREGATING, Phase.FINISHED])
def test_moves_that_are_not_in_the_table_are_bugs(phase: Phase) -> None:
    with pytest.raises(KeyError):
        transition(RunState(phase=phase), Reported(0, "a"), POLICY)


def test_every_phase_lets_time_pass_and_hears_clients() -> None:
    for phase in Phase:
        assert (phase, Tick) in TABLE
        assert (phase, Heard) in TABLE


def test_sampling_depends_on_names_seed_and_round_only() -> None:
    names = [f"client-{i}" for i in range(20)]
    policy = replace(POLICY, fraction=0.3)
    first = sample(names, policy, 1)
    assert len(first) == 6
    assert sample(reversed(names), policy, 1) == first
    assert sample(names, policy, 2) != first
    assert sample(names, replace(policy, seed=1), 1) != first
    assert sample(["only"], replace(policy, fraction=0.01), 1) == ("only",)


def test_the_diagram_in_the_design_is_the_table() -> None:
    design = Path(__file__).parent.parent / "docs" / "design.md"
    assert f"```mermaid\n{diagram()}\n```" in design.read_text("utf-8")
