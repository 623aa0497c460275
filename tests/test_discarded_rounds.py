"""Rounds whose model cannot be used: it is not adopted, the run goes on, and says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import Pull
from support.coordinator import DirectRun
from support.evaluator import DistanceEvaluator
from support.federation import Federation
from support.models import MANIFEST, TASK
from support.updates import constant, flat, honest

from featherfed.api.serve import FINISHED, NO_PROGRESS, STOPPED, _exit_status
from featherfed.cli.check_run import checks_of_run
from featherfed.compression.arrays import Array
from featherfed.compression.errors import OutOfRangeError
from featherfed.compression.exchange.masks import sparsity_of
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator import closing
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.observability.metrics_json import collect
from featherfed.server.storage.store import Store

Start = Callable[..., Federation]
DENSE = {"uplink": "float32", "fallback": "float32", "downlink": "float32"}
ONLY_THE_MODEL: dict[str, Any] = {"evaluation": {"clients": 0}}
NAN = float("nan")


class Diverging(DistanceEvaluator):
    """An evaluator that finds what is not finite in some of its calls, counted from 1."""

    def __init__(self, *bad: int, loss: float = NAN) -> None:
        self._bad, self._loss, self._calls = bad, loss, 0

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        self._calls += 1
        result = super().evaluate(weights)
        if self._calls not in self._bad:
            return result
        return replace(result, scores={**result.scores, "loss": self._loss})


def diverge(coordinator: Any, *bad: int) -> None:
    """Let the evaluations of these numbers fail; a discarded round takes two."""
    coordinator.closing._evaluator = Diverging(*bad)


def wrong(store: Store) -> list[str]:
    return [text for _, find in checks_of_run(store) for text in find()]


# ---- what is discarded ----


def test_a_round_without_an_update_that_counts_is_discarded(
    direct_run: Callable[..., DirectRun],
) -> None:
    run = direct_run(clients=1, compression=DENSE)
    before = run.store.versions.newest().digest
    assert not flat(run.step({"a": constant(4e11)})).any()
    newest = run.store.versions.newest()
    assert (newest.version, newest.digest) == (1, before)
    (told,) = run.metrics()["rounds"]
    assert told["discarded"] == "none of its updates counts"
    assert [(r["client"], r["reason"]) for r in told["refused"]] == [("a", "OUTLIER")]
    assert told["scores"]["loss"] is not None
    assert run.coordinator.status().discarded_rounds == 1
    run.step({"a": constant(0.1)})
    told = run.metrics()["rounds"][1]
    assert "discarded" not in told
    assert run.coordinator.status().discarded_rounds == 1
    assert wrong(run.store) == []


@pytest.mark.parametrize("loss", [NAN, float("inf")])
def test_a_model_whose_loss_is_not_finite_is_not_adopted(
    direct_run: Callable[..., DirectRun], loss: float, caplog: pytest.LogCaptureFixture
) -> None:
    run = direct_run(compression={"uplink": "2kB/round"}, **ONLY_THE_MODEL)
    run.coordinator.closing._evaluator = Diverging(1, loss=loss)
    odd = f"on the server's data, its loss is {loss}"
    with caplog.at_level(logging.INFO):
        assert not flat(run.step(honest(5))).any()
    assert run.metrics()["rounds"][0]["discarded"].startswith(odd)
    assert run.store.versions.newest().allocation is None, "nor are its reports"
    assert [u.payload for u in run.store.journal.updates(1)] == [None] * 5
    (event,) = (r for r in caplog.records if getattr(r, "event", "") == "round_discarded")
    assert event.levelno == logging.WARNING
    assert event.round == 1  # type: ignore[attr-defined]
    assert event.reason.startswith(odd)  # type: ignore[attr-defined]


def test_a_mean_that_leaves_the_range_of_weights_ends_no_run(
    direct_run: Callable[..., DirectRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = direct_run(compression=DENSE)

    def fail(*args: object) -> None:
        raise OutOfRangeError("update takes tensor 'kernel' beyond 1e+18")

    with monkeypatch.context() as patch:
        patch.setattr(closing, "next_version", fail)
        run.step(honest(5))
    assert "beyond 1e+18" in run.metrics()["rounds"][0]["discarded"]
    assert flat(run.step(honest(5))).any()


def test_what_cannot_be_evaluated_at_all_has_no_loss(direct_run: Callable[..., DirectRun]) -> None:
    run = direct_run(compression=DENSE, **ONLY_THE_MODEL)
    diverge(run.coordinator, 1, 2)
    run.step(honest(5))
    assert run.metrics()["rounds"][0]["scores"]["loss"] is None


# ---- what the others see of it ----


@pytest.mark.parametrize(
    "changes",
    [
        {"compression": {"uplink": "sketch(0.3, 1, bounded)"}},
        {"compression": {"uplink": "2kB/round", "broadcast": "aggregate"}},
        {"compression": {"uplink": "topk(0.1) | quantize(4) | zstd", "downlink": "deadzone(0.2)"}},
        {"optimization": {"method": "prune", "final_sparsity": 0.7}},
    ],
)
def test_clients_follow_a_run_over_a_discarded_round(federation: Start, changes: Any) -> None:
    server = federation(rounds=4, **ONLY_THE_MODEL, **changes)
    diverge(server.coordinator, 2, 5)  # the models of rounds 2 and 4
    held = server.run_clients(*(server.client(n, v) for n, v in (("a", 0.1), ("b", 0.7), ("c", 0))))
    server.join()
    versions = server.store.versions.all()
    assert {h.digest for h in held} == {versions[-1].digest}
    assert list(server.store.journal.discarded()) == [2, 4]
    if "optimization" not in changes:
        assert versions[2].digest == versions[1].digest
        assert versions[4].digest == versions[3].digest != versions[2].digest
    else:
        assert sparsity_of(MANIFEST, held[0].weights) == pytest.approx(0.7, abs=0.01)
    assert wrong(server.store) == []
    assert not any(
        e.kind == "retry" and e.direction == "downlink" for e in server.store.ledger.entries()
    ), "nobody needed a snapshot"
    rounds = collect(server.store, server.settings, TASK, MANIFEST, {})["rounds"]
    assert [len(r["clients"]) for r in rounds] == [3] * 4, "whose bytes were sent"


def test_a_run_of_discarded_rounds_ends_with_its_first_model(federation: Start) -> None:
    server = federation(rounds=3, **ONLY_THE_MODEL)
    diverge(server.coordinator, 1, 2, 3, 4, 5, 6)
    held = server.run_clients(*(server.client(name, 0.5) for name in "abc"))
    server.join()
    assert {h.digest for h in held} == {server.store.versions.get(0).digest}
    assert server.coordinator.status().discarded_rounds == 3
    assert server.finished


@pytest.mark.parametrize(
    ("finished", "discarded", "status"),
    [(True, 0, FINISHED), (True, 2, FINISHED), (True, 3, NO_PROGRESS), (False, 3, STOPPED)],
)
def test_serve_says_by_its_exit_status_that_a_run_came_to_nothing(
    finished: bool, discarded: int, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    reply = pb.StatusReply(rounds=3, discarded_rounds=discarded)
    assert _exit_status(finished, reply) == status
    assert ("rounds were discarded" in caplog.text) == (finished and discarded > 0)


# ---- weights that only training shows to be spoilt ----


class Exploding(Pull):
    """A trainer whose weights are not finite any more."""

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        return TrainingResult([w * np.float32(np.inf) for w in weights], NAN)


@pytest.mark.parametrize(
    ("first", "told"),
    [(0.5, "check the data"), (3e11, "global model that it started from .*3e\\+11")],
)
def test_a_client_blames_its_data_only_if_the_global_model_is_sane(
    federation: Start, tmp_path: Path, first: float, told: str
) -> None:
    server = federation(
        first_weights=constant(first), clients={"minimum": 1, "quorum": 1.0, "deadline": 30}
    )
    with pytest.raises(ClientError, match=told):
        server.run_clients(server.client("a", trainer=Exploding(1.0)))
