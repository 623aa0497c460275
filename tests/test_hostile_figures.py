"""Statistics and evaluations that no data give: refused with a reason, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import join_request
from support.federation import settings
from support.regression import HELD_OUT, LINEAR, REGRESSION, SETTINGS, LinearClient

from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused, ServerError
from featherfed.server.rounds.transitions import Phase
from featherfed.server.settings.plan import make_plan
from featherfed.server.storage.store import Store
from featherfed.tasks.message import read_evaluation
from featherfed.tasks.scoring import Scoring

NAN, INF = math.nan, math.inf


class Run:
    """A run of the regression task without gRPC, data or evaluator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = settings(
            folder, task=SETTINGS, evaluation={"dataset": None}, rounds=2,
            clients={"minimum": 2, "quorum": 1.0, "patience": 0},
            compression={"uplink": "float32", "downlink": "float32"},
        )  # fmt: skip
        self.sessions: dict[str, int] = {}
        self.open()

    def open(self) -> None:
        self.store = Store(self.folder / "run.db")
        plan = make_plan(self.settings, REGRESSION, "{}", LINEAR)
        self.run = Coordinator(
            self.settings, self.store, plan, LINEAR, REGRESSION, None, lambda: 1e9, secret=1
        )

    def restart(self) -> None:
        self.store._database.close()
        self.open()

    def join(self, name: str, change: Callable[[pb.DataSummary], None] = lambda _: None) -> None:
        request = join_request(name)
        request.data.CopyFrom(LinearClient(name, len(self.sessions)).profile().data)
        change(request.data)
        self.sessions[name] = self.run.admission.join(request).session

    def begin_round(self) -> None:
        for name in self.sessions:
            self.run.tasks.next_task(name)
        assert self.run.tick().phase is Phase.TRAINING

    def submit(self, name: str, **sums: Any) -> None:
        task = self.run.tasks.next_task(name).train
        zeros = [np.zeros(spec.shape, np.float32) for spec in LINEAR]
        payload = encode_update(parse_codec(task.codec), LINEAR, zeros).payload
        header = pb.UpdateHeader(
            session=self.sessions[name], round=task.round, version=task.version, num_examples=50,
            size=len(payload), **{k: pb.Evaluation(sums=v) for k, v in sums.items()},
        )  # fmt: skip
        assert self.run.updates.submit(name, header, payload, len(payload)) == pb.ACCEPTED


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.store.close()


# ---- statistics ----


def sums(**changes: Any) -> Callable[[pb.DataSummary], None]:
    """Return a change of the statistics of the input."""

    def change(data: pb.DataSummary) -> None:
        found = data.statistics.inputs[0]
        for name, value in changes.items():
            if isinstance(value, list):
                getattr(found, name)[:] = value
            else:
                setattr(found, name, value)

    return change


STATISTICS: dict[str, tuple[Callable[[pb.DataSummary], None], str]] = {
    "none at all": (lambda data: data.ClearField("statistics"), "sends no statistics"),
    "of no input": (lambda data: data.statistics.ClearField("inputs"), "another number of inputs"),
    "of an empty input": (
        lambda data: data.statistics.inputs[0].Clear(), "other tensors than the task standardises",
    ),
    "without the target": (lambda data: data.statistics.ClearField("target"), "other tensors"),
    "of many inputs": (
        lambda data: data.statistics.inputs.extend([pb.FeatureSums(count=1)] * 10**5),
        "another number of inputs",
    ),
    "NaN": (sums(sums=[0, NAN, 0]), "contradict"),
    "NaN squares": (sums(squares=[1, NAN, 1]), "not finite"),
    "an infinite sum": (sums(sums=[INF, 0, 0]), "contradict"),
    "infinite squares": (sums(squares=[INF, 1, 1]), "not finite"),
    "negative squares": (sums(squares=[-1, 1, 1], sums=[0, 0, 0]), "contradict"),
    "squares below the mean": (sums(sums=[1e6, 0, 0], squares=[1, 1, 1]), "contradict"),
    "a count of NaN": (sums(count=NAN), "no value at all"),
    "a count of 0": (sums(count=0.0), "no value at all"),
    "a negative count": (sums(count=-5.0), "no value at all"),
    "more values than examples": (sums(count=10.0**12, squares=[1e30] * 3), "examples have"),
    "too few features": (sums(sums=[0, 0], squares=[1, 1]), "sums of 2 features"),
    "endless features": (sums(sums=[0] * 10**5, squares=[1] * 10**5), "sums of 100000 features"),
    "huge": (sums(sums=[0] * 3, squares=[1e60] * 3), "values above 1e\\+18"),
    "beyond float32": (sums(sums=[0] * 3, squares=[1e300] * 3), "does not fit 3 features"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), STATISTICS.values(), ids=STATISTICS)
def test_statistics_that_no_data_give_are_refused(
    run: Run, change: Callable[[pb.DataSummary], None], says: str
) -> None:
    run.join("a")
    with pytest.raises(Refused, match=f"DATA_MISMATCH.*{says}"):
        run.join("liar", change)
    run.join("b")
    run.begin_round()
    alone = run.run.scaling()
    assert alone is not None
    alone.check(REGRESSION)
    assert run.store.scaling.statistics().keys() == {"a", "b"}


def test_the_largest_statistics_that_are_taken_keep_the_scaling_finite(run: Run) -> None:
    for name in "abc":
        run.join(name, sums(count=50.0, sums=[0] * 3, squares=[50 * 9e35] * 3))
    run.begin_round()
    scaling = run.run.scaling()
    assert scaling is not None
    scaling.check(REGRESSION)


def test_the_scaling_is_fixed_once_and_outlives_a_crash(run: Run) -> None:
    run.join("a")
    run.join("b")
    run.join("absent")
    for name in "ab":
        run.run.tasks.next_task(name)
    assert not run.run.tasks.next_task("a").HasField("train")
    run.run.tick()
    first = run.run.tasks.next_task("a").train.scaling
    assert first.inputs[0].mean
    run.restart()
    run.join("late", sums(count=50.0, sums=[0] * 3, squares=[50 * 1e20] * 3))
    assert run.run.tasks.next_task("b", has_scaling=True).train.scaling == first, "in round 1"
    assert "late" not in run.store.scaling.statistics(), "it would not count"
    both = [LinearClient(name, seed).inputs[:-HELD_OUT] for seed, name in enumerate("ab")]
    np.testing.assert_allclose(
        first.inputs[0].mean, np.concatenate(both).mean(axis=0, dtype=np.float64), rtol=1e-6
    )


def test_a_client_that_has_the_scaling_gets_it_no_second_time(run: Run) -> None:
    for name in "ab":
        run.join(name)
    run.begin_round()
    for name in "ab":
        run.submit(name)
    run.run.aggregate()
    run.begin_round()
    tasks = run.run.tasks
    assert not tasks.next_task("a", has_scaling=True).train.HasField("scaling")
    assert tasks.next_task("a").train.HasField("scaling")
    for name in "ab":
        run.submit(name)
    run.run.aggregate()
    assert tasks.next_task("a").finished.HasField("scaling")
    assert not tasks.next_task("a", has_scaling=True).finished.HasField("scaling")


def test_the_scaling_of_another_task_is_not_used(run: Run) -> None:
    run.join("a")
    run.join("b")
    run.begin_round()
    run.store.scaling._database.run("DELETE FROM scaling")
    run.store.scaling.fix(pb.Scaling(inputs=[pb.FeatureScale(mean=[0], deviation=[1])]))
    run.store.close()
    with pytest.raises(ServerError, match=r"run\.db holds the scaling of another task"):
        run.open()
    run.store.close()
    Store(run.folder / "run.db").close()


# ---- evaluations ----

GOOD = [10.0, 5.0, 30.0, 20.0, 40.0, 20.0, 30.0, 50.0, 9000.0, 20.0]
"""10 examples; loss; rmse: squares and number; mae; r2: squares, sum, squares, number."""

EVALUATIONS: dict[str, tuple[list[float], str]] = {
    "too few sums": (GOOD[:-1], "9 sums where the task's metrics have 10"),
    "too many sums": ([*GOOD, 1.0], "11 sums"),
    "endless sums": ([1.0] * 10**5, "100000 sums"),
    "NaN": ([*GOOD[:3], NAN, *GOOD[4:]], "not finite"),
    "infinite": ([*GOOD[:3], INF, *GOOD[4:]], "not finite"),
    "no example": ([0.0, *GOOD[1:]], "of no example"),
    "a negative number": ([-3.0, *GOOD[1:]], "of no example"),
    "more examples than there are": ([2e8, *GOOD[1:]], "sums of 200000000 examples; at most 10000"),
    "a negative loss": ([10.0, -5.0, *GOOD[2:]], "a loss below 0"),
    "a negative square": ([*GOOD[:2], -30.0, *GOOD[3:]], "the metric rmse that no examples give"),
    "no position": ([*GOOD[:3], 0.0, *GOOD[4:]], "the metric rmse that no examples give"),
    "negative errors": ([*GOOD[:4], -1.0, *GOOD[5:]], "the metric mae"),
    "a sum beyond its squares": ([*GOOD[:7], 1e6, *GOOD[8:]], "the metric r2"),
    "negative squares": ([*GOOD[:8], -9000.0, 20.0], "the metric r2"),
}


def test_the_sums_of_these_tests_can_be() -> None:
    scoring = Scoring(REGRESSION)
    good = read_evaluation(pb.Evaluation(sums=GOOD))
    scoring.check(good)
    assert scoring.is_usable(scoring.scores(good))


@pytest.mark.parametrize(("bad", "says"), EVALUATIONS.values(), ids=EVALUATIONS)
@pytest.mark.parametrize("which", ["before", "after"])
def test_an_evaluation_that_no_examples_give_is_refused(
    run: Run, which: str, bad: list[float], says: str
) -> None:
    for name in "ab":
        run.join(name)
    run.begin_round()
    with pytest.raises(Refused, match=f"MALFORMED: evaluation: .*{says}"):
        run.submit("a", **{which: bad})
    assert not run.run.updates.has("a", 1)
    run.submit("a", before=GOOD, after=GOOD)
    run.submit("b", before=[2 * value for value in GOOD[:0]])
    run.run.aggregate()
    scores = run.store.versions.get(0).scores
    assert scores is not None
    assert scores["mae"] == 2.0


@pytest.mark.parametrize(("bad", "says"), EVALUATIONS.values(), ids=EVALUATIONS)
def test_a_final_report_that_no_examples_give_is_refused(
    run: Run, bad: list[float], says: str
) -> None:
    finish(run)
    report = run.run.final_evaluation.report
    with pytest.raises(Refused, match=f"MALFORMED: evaluation: .*{says}"):
        report("a", pb.EvaluationReport(version=2, evaluation=pb.Evaluation(sums=bad)))
    assert run.store.evaluations.of(2) == {}
    assert run.store.versions.newest().scores is None


def test_each_client_reports_once_and_the_server_waits_for_those_present(run: Run) -> None:
    finish(run)
    evaluation = run.run.final_evaluation
    for name in "ab":
        run.run.presence.hear(name)
    good = pb.EvaluationReport(version=2, evaluation=pb.Evaluation(sums=GOOD))
    other = pb.EvaluationReport(
        version=2, evaluation=pb.Evaluation(sums=[*GOOD[:4], 80, *GOOD[5:]])
    )
    with pytest.raises(Refused, match="UNKNOWN_VERSION"):
        evaluation.report("a", pb.EvaluationReport(version=1, evaluation=good.evaluation))
    assert evaluation.missing(frozenset("ab")) == {"a", "b"}
    evaluation.report("a", good)
    evaluation.report("a", other)  # again, as after a lost answer; the first one counts
    assert evaluation.missing(frozenset("ab")) == {"b"}
    run.restart()
    evaluation = run.run.final_evaluation
    evaluation.report("b", pb.EvaluationReport(version=2))  # it has no usable figures
    assert evaluation.missing(frozenset("ab")) == frozenset()
    evaluation.settle()
    scores = run.store.versions.newest().scores
    assert scores is not None
    assert scores["mae"] == 2.0


def test_no_report_is_taken_before_the_end(run: Run) -> None:
    run.join("a")
    run.join("b")
    run.begin_round()
    with pytest.raises(Refused, match="UNKNOWN_VERSION"):
        run.run.final_evaluation.report("a", pb.EvaluationReport(version=1))


def finish(run: Run) -> None:
    """Play the run to its end."""
    for name in "ab":
        run.join(name)
    while run.run.phase is not Phase.FINISHED:
        run.begin_round()
        for name in "ab":
            run.submit(name)
        run.run.aggregate()
