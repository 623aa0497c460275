"""What whoever runs the server decides while it runs: pause, end, extend, exclude; and restarts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.clients import Pull, join_request
from support.coordinator import Clock, Run, opened
from support.federation import Federation, settings
from support.kills import free_port
from support.models import MANIFEST

from featherfed.cli.check_run import checks_of_run
from featherfed.edge_client.errors import Rejected
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import NotNow, Refused
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.transitions import Phase
from featherfed.server.settings.settings import Settings

THREE = {"minimum": 3, "quorum": 0.6, "deadline": 100, "patience": 10}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def first(run: Callable[..., Run], clock: Clock) -> Run:
    """A run of four rounds, the first of them open for a, b and c."""
    return opened(run(clock, rounds=4, clients=THREE))


def play(run: Run, round_: int, names: str = "abc") -> None:
    """Let the open round end with updates of all `names`."""
    for name in names:
        run.submit(name, round_)
    assert run.coordinator.phase is Phase.AGGREGATING
    run.coordinator.aggregate()


def test_a_paused_run_opens_no_round_also_after_a_restart(first: Run, clock: Clock) -> None:
    operator = first.coordinator.operator
    assert operator.pause() == "round 1 goes on to its end; then no round opens"
    with pytest.raises(NotNow, match="paused already"):
        operator.pause()
    play(first, 1)
    first.poll(*"abc")
    assert first.tick().phase is Phase.GATHERING
    first.restart(clock)
    first.join(*"abc")
    first.poll(*"abc")
    clock.now += 50
    first.poll(*"abc")
    assert first.tick().phase is Phase.GATHERING
    assert first.coordinator.run.policy.paused
    assert first.coordinator.operator.resume() == "resumed"
    with pytest.raises(NotNow, match="not paused"):
        first.coordinator.operator.resume()
    assert first.coordinator.run.state.since == clock.now, "the round waits for its clients anew"
    assert first.tick().phase is Phase.TRAINING
    first.restart(clock)
    assert not first.coordinator.run.policy.paused


def test_the_loop_hears_of_decisions(first: Run) -> None:
    calls: list[str] = []
    first.coordinator.run.on_decision = lambda: calls.append("decision")
    operator = first.coordinator.operator
    operator.pause(), operator.resume(), operator.exclude("a"), operator.include("a")
    operator.extend(1), operator.end()
    assert len(calls) == 6


def test_a_run_ends_after_the_open_round_and_stays_so(first: Run, clock: Clock) -> None:
    assert first.coordinator.operator.end() == "the run ends after round 1"
    with pytest.raises(NotNow, match="ends after round 1 anyway"):
        first.coordinator.operator.end()
    first.restart(clock)
    assert first.coordinator.run.policy.rounds == 1
    assert first.coordinator.settings.rounds == 4, "it was planned so"
    first.join(*"abc")
    play(first, 1)
    assert first.coordinator.phase is Phase.FINISHED
    first.restart(clock)
    assert first.coordinator.phase is Phase.FINISHED
    with pytest.raises(NotNow, match="the run has finished"):
        first.coordinator.operator.extend(2)


def test_between_rounds_a_run_ends_at_once(first: Run, clock: Clock) -> None:
    play(first, 1)
    first.poll(*"abc")
    first.tick()
    play(first, 2)
    assert first.coordinator.phase is Phase.GATHERING
    assert first.coordinator.operator.end() == "the run ends after round 2"
    before = first.store.runs.state()
    first.restart(clock)  # it died before the loop looked
    assert first.store.runs.state().phase is before.phase is Phase.GATHERING
    state = first.tick()
    assert (state.phase, state.round) == (Phase.FINISHED, 2)
    assert first.coordinator.newest_version == 2
    assert not [problem for _, find in checks_of_run(first.store) for problem in find()]


def test_a_run_that_was_ended_goes_on_only_if_it_wants_more_than_ever(
    first: Run, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first.coordinator.operator.extend(2)  # 6
    first.coordinator.operator.end()
    first.join(*"abc")
    play(first, 1)
    for rounds in (4, 6):
        first.settings = first.settings.model_copy(update={"rounds": rounds})
        first.restart(clock)
        assert first.coordinator.phase is Phase.FINISHED, rounds
    assert "was ended early: it has 1 rounds of 6" in caplog.text
    first.settings = first.settings.model_copy(update={"rounds": 7})
    first.restart(clock)
    assert (first.coordinator.phase, first.coordinator.run.policy.rounds) == (Phase.GATHERING, 7)


def test_a_run_before_its_first_round_gets_one(run: Callable[..., Run], clock: Clock) -> None:
    first = run(clock, rounds=4, clients=THREE)
    assert first.coordinator.operator.end() == "the run ends after round 1"
    opened(first)
    play(first, 1)
    assert first.coordinator.phase is Phase.FINISHED


def test_more_rounds_hold_from_the_next_one_on(first: Run, clock: Clock) -> None:
    session = first.sessions["a"]
    assert first.coordinator.operator.extend(3) == "the run has 7 rounds"
    coordinator = first.coordinator
    assert (coordinator.plan.rounds, coordinator.settings.rounds) == (7, 7)
    assert first.store.runs.extensions() == [(2, 7)]
    with pytest.raises(Refused, match="join first"):
        coordinator.members.client_of(session)
    for wrong in (0, -1, 10**7):
        with pytest.raises(NotNow, match="extend the run by 1 to"):
            coordinator.operator.extend(wrong)
    first.join(*"abc")
    assert first.sessions["a"] != session
    play(first, 1)
    first.restart(clock)
    assert first.coordinator.run.policy.rounds == 7
    assert first.coordinator.operator.extend(1) == "the run has 8 rounds"
    assert first.store.runs.extensions() == [(2, 8)]


def test_codecs_go_by_the_number_of_rounds_that_is_raised_while_they_serve() -> None:
    dense = Settings.model_validate({"rounds": 6, "compression": {"uplink": "balanced"}})
    total = TotalRounds(6).changed(4, 9)
    codecs, new = (
        UpdateCodecs(dense, MANIFEST, "bounded", "accuracy", t) for t in (TotalRounds(6), total)
    )
    known = frozenset({"sketch", "topk", "quantize", "zstd"})
    codecs.choose(5, 5, known)
    codecs.change_rounds(total)
    for round_ in range(1, 10):
        assert codecs.choose(round_, 5, known) == new.choose(round_, 5, known)
        assert codecs.server_rate(round_, 5) == new.server_rate(round_, 5)


@pytest.mark.parametrize(
    ("total", "begin", "last", "calibrations"),
    [
        (TotalRounds(7), 4, 3, []),
        (TotalRounds(7, ((5, 9),)), 8, 7, []),
        (TotalRounds(7, calibrates=True), 4, 4, [4]),
        (TotalRounds(7, calibrates=True), 8, 8, [8]),
        (TotalRounds(3, ((5, 5),), calibrates=True), 5, 4, [4]),
        (TotalRounds(3, ((5, 5),), calibrates=True), 6, 6, [4, 6]),
    ],
)
def test_a_shorter_run_still_calibrates_once(
    total: TotalRounds, begin: int, last: int, calibrations: list[int]
) -> None:
    ended = total.ended(begin)
    assert ended.last == last
    assert [r for r in range(1, last + 1) if ended.is_calibration(r)] == calibrations


def test_an_excluded_client_is_refused_and_no_round_waits_for_it(first: Run, clock: Clock) -> None:
    coordinator = first.coordinator
    first.submit("a"), first.submit("b")
    assert coordinator.operator.exclude("c") == "c is excluded"
    with pytest.raises(NotNow, match="already"):
        coordinator.operator.exclude("c")
    with pytest.raises(NotNow, match="no client named 'x'"):
        coordinator.operator.exclude("x")
    with pytest.raises(Refused, match="EXCLUDED: whoever runs this server has excluded c"):
        first.submit("c")
    with pytest.raises(Refused, match="EXCLUDED"):
        coordinator.admission.join(join_request("c"))
    assert first.tick().phase is Phase.AGGREGATING, "it waits for nobody else"
    coordinator.aggregate()
    first.restart(clock)
    first.join("a", "b")
    with pytest.raises(Refused, match="EXCLUDED"):
        first.join("c")
    first.poll("a", "b")
    assert first.tick().cohort in (("a", "b"), ("b", "a"))
    assert first.coordinator.operator.include("c") == "c may take part again"
    first.join("c")


def test_what_an_excluded_client_has_sent_counts(first: Run) -> None:
    first.submit("c")
    first.coordinator.operator.exclude("c")
    first.submit("a"), first.submit("b")
    first.coordinator.aggregate()
    assert first.store.journal.reporters(1) == {"a", "b", "c"}


def test_clients_follow_decisions_over_grpc(tmp_path: Path) -> None:
    """One is excluded and ends with the reason; the others go on, into the rounds added."""
    changed = settings(
        tmp_path, rounds=2, server={"port": free_port(), "linger": 10},
        clients={"minimum": 3, "quorum": 0.5, "deadline": 60, "patience": 60},
    )  # fmt: skip
    server = Federation(tmp_path, changed).start()
    reached, go_on = threading.Event(), threading.Event()

    class Slow(Pull):
        def train(self, weights: Any, task: Any) -> Any:
            if task.round == 2 and not reached.is_set():
                reached.set()
                assert go_on.wait(60)
            return super().train(weights, task)

    ended: dict[str, BaseException | None] = {}

    def take_part(name: str, trainer: Pull) -> None:
        try:
            server.client(name, trainer=trainer).run()
            ended[name] = None
        except BaseException as error:
            ended[name] = error

    trainers = {"a": Slow(1.0), "b": Pull(2.0), "c": Pull(3.0)}
    threads = [threading.Thread(target=take_part, args=each) for each in trainers.items()]
    for thread in threads:
        thread.start()
    assert reached.wait(60)
    server.coordinator.operator.exclude("c")
    server.coordinator.operator.extend(1)
    go_on.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    server.join()
    assert server.finished
    assert server.store.versions.newest().version == 3
    assert isinstance(ended["c"], Rejected)
    assert "has excluded c" in str(ended["c"])
    assert ended["a"] is None, ended
    assert ended["b"] is None, ended
    refused = {(r.client, r.reason) for r in server.store.refusals.all()}
    assert ("c", "EXCLUDED") in refused
    server.close()


def test_a_waiting_client_is_told_at_once_that_it_is_excluded(
    federation: Callable[..., Federation],
) -> None:
    server = federation(rounds=1, clients={"minimum": 2})
    transport = server.transport()
    reply = transport.join(join_request("a"))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            transport.next_task(reply.session)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while "a" not in server.coordinator.presence.present():
        thread.join(0.05)
    server.coordinator.operator.exclude("a")
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(errors[0], Rejected | grpc.RpcError)
