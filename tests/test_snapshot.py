"""What a live page shows of a run: every figure against the store, and what a snapshot costs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.coordinator import CODEC, Clock, DirectRun, Run, opened
from support.federation import Federation
from support.models import MANIFEST, TASK

from featherfed.compression.arrays import Array
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused
from featherfed.server.observability import snapshot as module
from featherfed.server.observability.log_lines import MOST_LINES, LogLines
from featherfed.server.observability.recent_metrics import RecentMetrics
from featherfed.server.observability.snapshot import Moment, Snapshots, steady
from featherfed.server.rounds.transitions import Phase, Policy, RunState
from featherfed.server.storage.records import ClientRecord

THREE = {"minimum": 3, "quorum": 0.6, "deadline": 100, "patience": 10}
FLOAT32 = 4 * MANIFEST.sent.num_values


def snapshots(coordinator: Coordinator, log: LogLines | None = None) -> Snapshots:
    return Snapshots(
        coordinator.store, TASK, FLOAT32, coordinator.moment, log or LogLines(), "join"
    )


def states(made: Any) -> dict[str, str]:
    return {client["name"]: client["state"] for client in made["clients"]}


def changes(run: DirectRun) -> dict[str, list[Array]]:
    """Return small updates of three clients."""
    small = [np.full(w.shape, 0.01, np.float32) for w in run.coordinator.newest_weights()]
    return dict.fromkeys("abc", small)


def test_a_run_from_its_beginning_to_its_end(run: Callable[..., Run]) -> None:
    clock = Clock()
    one = run(clock, rounds=2, clients=THREE)
    made = snapshots(one.coordinator)
    first = made.make()
    assert (first["phase"], first["waiting_for"], first["version"]) == ("waiting", 3, 0)
    assert first["points"] == first["clients"] == first["versions"] == []
    assert first["best"] is None
    one.join("a")
    one.poll("a")
    assert made.make()["waiting_for"] == 2
    opened(one)
    clock.now += 10
    one.submit("a")
    training = made.make()
    assert (training["phase"], training["round"], training["deadline_in"]) == ("training", 1, 90)
    assert states(training) == {"a": "reported", "b": "training", "c": "training"}
    assert [c["seconds"] for c in training["clients"]] == [10, None, None]
    assert [c["heard_ago"] for c in training["clients"]] == [10, 10, 10]
    assert training["bytes"]["float32"] == FLOAT32
    one.coordinator.operator.exclude("c")
    one.submit("b")
    one.tick()
    assert made.make()["phase"] == "aggregating"
    one.coordinator.aggregate()
    done = made.make()
    assert (done["phase"], done["version"], done["deadline_in"]) == ("waiting", 1, None)
    assert states(done)["c"] == "excluded"
    (point,) = done["points"]
    scores = one.store.versions.get(1).scores or {}
    assert (point["round"], point["score"], point["loss"]) == (
        1, scores["accuracy"], scores["loss"],
    )  # fmt: skip
    assert point["seconds"] == 10
    assert point["up"] == sum(
        e.message_bytes for e in one.store.ledger.of_round(1) if e.direction == "uplink"
    )
    assert done["best"] == {"version": 1, "score": scores["accuracy"]}
    newest = one.store.versions.newest()
    assert done["versions"] == [
        {"version": 1, "digest": newest.digest.hex(), "size": len(newest.payload)}
    ]
    one.coordinator.operator.pause()
    assert made.make()["phase"] == "paused"
    json.dumps(made.make(), allow_nan=False)


def test_a_snapshot_of_a_new_start_is_the_same(run: Callable[..., Run]) -> None:
    """What was read once says what reading it all anew says, also of scores that came later."""
    clock = Clock()
    one = run(clock, rounds=9, clients={**THREE, "minimum": 1, "patience": 0})
    made = snapshots(one.coordinator)
    one.join(*"abc")
    for round_ in range(1, 7):
        one.poll(*"abc")
        one.tick()
        clock.now += round_
        for name in "abc":
            one.submit(name, round_)
        one.coordinator.aggregate()
        one.store.versions.set_scores(max(1, round_ - 1), {"accuracy": round_ / 10, "loss": 0.5})
        made.make()
    now, anew = made.make(), snapshots(one.coordinator).make()
    assert now == anew
    assert [point["score"] for point in now["points"][:4]] == [0.2, 0.3, 0.4, 0.5]
    assert now["best"]["score"] == max(p["score"] for p in now["points"])


def test_refusals_are_in_words_and_the_newest_first(run: Callable[..., Run]) -> None:
    clock = Clock()
    one = run(clock, rounds=2, clients=THREE)
    made = snapshots(one.coordinator)
    for number in range(60):
        clock.now += 1
        refusal = Refused(pb.LATE, f"round {number} is not open\x1b[31m")
        one.coordinator.refusals.record(f"c{number}", refusal)
    assert made.make()["refusals"] == [], "not written yet"
    one.store.flush()
    found = made.make()["refusals"]
    assert len(found) == 50
    assert (found[0]["client"], found[0]["reason"]) == ("c59", "LATE")
    assert found[0]["text"] == "round 59 is not open\\x1b[31m"
    assert found[0]["time"] > found[1]["time"]
    one.coordinator.refusals.record("c59", Refused(pb.LATE, "again"))
    one.store.flush()
    assert made.make()["refusals"][0]["text"] == "again (2 times)"


def test_the_newest_lines_of_the_log() -> None:
    lines, logger = LogLines(), logging.getLogger("test_snapshot")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    with lines.collecting(logger):
        logger.debug("not shown")
        for number in range(MOST_LINES + 5):
            logger.info("line %d", number)
        logger.warning("two\nlines <b>%s", "x" * 9999)
        logger.error("does not fit %d", "text")
        try:
            raise OSError("full")
        except OSError:
            logger.exception("failed")
    logger.info("later")
    found = lines.newest_first()
    assert len(found) == MOST_LINES
    assert found[0]["text"] == "failed: OSError('full')"
    assert found[1]["text"] == "does not fit %d"
    assert found[2]["text"].startswith("two\\nlines <b>xxx")
    assert len(found[2]["text"]) < 600
    assert found[3] == {**found[3], "level": "INFO", "text": f"line {MOST_LINES + 4}"}


def test_time_alone_is_no_change(run: Callable[..., Run]) -> None:
    clock = Clock()
    one = opened(run(clock, rounds=2, clients=THREE))
    made = snapshots(one.coordinator)
    before = made.make()
    clock.now += 3
    after = made.make()
    assert before != after
    assert steady(before) == steady(after)
    one.submit("a")
    assert steady(made.make()) != steady(after)


def test_long_runs_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_POINTS", 10)
    points: list[Any] = list(range(1, 101))
    found = module._thinned(points)
    assert len(found) <= 10
    assert found[0] == 1
    assert found[-5:] == points[-5:]
    assert module._thinned(points[:10]) == points[:10]


def test_500_clients_and_many_rounds_stay_cheap(direct_run: Callable[..., DirectRun]) -> None:
    """No figure of a machine: a snapshot runs as many statements after 40 rounds as after 4."""
    one = direct_run(rounds=1000, clients=3, compression=CODEC)
    store = one.store
    names = [f"client-{number:03}" for number in range(500)]
    clients = {name: ClientRecord(n, 10, frozenset(), "litert") for n, name in enumerate(names)}
    heard = dict.fromkeys(names, 1.0)
    moment = Moment(
        5.0, RunState(Phase.TRAINING, 41, 1.0, tuple(names), 500), Policy(1000, 2), 0, clients,
        frozenset(), heard, {},
    )  # fmt: skip
    statements: list[str] = []
    original = store._database.run

    def counted(sql: str, *values: Any) -> Any:
        statements.append(sql)
        return original(sql, *values)

    made = Snapshots(store, TASK, FLOAT32, lambda: moment, LogLines(), "join")
    counts = []
    for round_ in range(1, 41):
        one.step(changes(one))
        if round_ in (4, 40):
            made.make()
            store._database.run = counted  # type: ignore[method-assign]
            statements.clear()
            made.make()
            counts.append(len(statements))
            store._database.run = original  # type: ignore[method-assign]
    assert counts[0] == counts[1] < 25
    begin = time.perf_counter()
    shown = made.make()
    seconds = time.perf_counter() - begin
    assert len(shown["clients"]) == 500
    assert seconds < 0.25, "about 0.01 on an idle machine"


def test_metrics_for_the_page_are_those_of_the_file(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = direct_run(rounds=9, clients=3, compression=CODEC)
    facts = {"featherfed": "0", "num_test_examples": 1}
    recent = RecentMetrics(one.store, lambda: one.settings, TASK, MANIFEST, facts)
    for _ in range(6):
        one.step(changes(one))
        assert recent.collect() == one.metrics()
    monkeypatch.setattr("featherfed.server.observability.recent_metrics.MOST_UPDATES", 6)
    few = RecentMetrics(one.store, lambda: one.settings, TASK, MANIFEST, facts)
    assert [entry["round"] for entry in few.collect()["rounds"]] == [5, 6]
    assert few.collect()["rounds"] == one.metrics()["rounds"][4:]


def test_scores_of_clients_and_bytes_over_grpc(
    federation: Callable[..., Federation],
) -> None:
    server = federation(rounds=3)
    made = snapshots(server.coordinator)
    server.run_clients(*(server.client(name, value) for value, name in enumerate("abc", 1)))
    server.join()
    shown = made.make()
    assert (shown["phase"], shown["version"], len(shown["points"])) == ("finished", 3, 3)
    assert all(client["score"] is not None for client in shown["clients"])
    ledger = server.store.ledger
    for side, key in (("uplink", "up"), ("downlink", "down")):
        assert shown["bytes"][key] == ledger.message_bytes(side)
        for point in shown["points"]:
            entries = ledger.of_round(point["round"])
            assert point[key] == sum(e.message_bytes for e in entries if e.direction == side)
    model = ("downlink", "transfer")
    downloads = sum((e.direction, e.kind) == model for e in ledger.entries())
    assert shown["bytes"]["float32"] == FLOAT32 * (9 + downloads)
