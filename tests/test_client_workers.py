"""Clients of a simulated run in worker processes: same results, and errors that name a worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.clients import profile
from support.evaluator import DistanceEvaluator
from support.federation import settings
from support.models import MANIFEST, TASK
from support.worker_clients import MakePull, die, fail, leave, nothing

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import ServerError
from featherfed.sweep.client_processes import WorkerDied
from featherfed.sweep.grid import Case, Sweep
from featherfed.sweep.simulate import Workers, simulate

FEEDBACK = "topk(0.05) | zstd(1)"
"""A codec whose residual stays with the client from round to round."""
OnRound = Callable[[int, Mapping[str, float]], bool | None]


def go_on(round_: int, scores: Mapping[str, float]) -> None:
    pass


def run(
    folder: Path,
    workers: int,
    act: Callable[[pb.Train], None] = nothing,
    uplink: str = FEEDBACK,
    on_round: OnRound = go_on,
    make: Any = None,
    **clients: Any,
) -> dict[str, Any]:
    """Return the metrics of a run of five clients without its random name."""
    make = make or MakePull(act)
    told = simulate(
        settings(
            folder, rounds=4, clients={"minimum": 5, "quorum": 1.0, **clients},
            compression={"uplink": uplink},
        ),
        model_json="{}", manifest=MANIFEST, task=TASK, evaluator=DistanceEvaluator(),
        clients={f"c{i}": profile(f"c{i}", 100 * (i + 1)).data for i in range(5)},
        make_trainer=make, on_round=on_round, runtime="numpy",
        workers=Workers(workers, lambda names: make) if workers > 1 else None,
    )  # fmt: skip
    del told["run"]
    return told


@pytest.mark.parametrize(
    ("uplink", "clients", "workers"),
    [(FEEDBACK, {}, 2), (FEEDBACK, {"fraction": 0.5}, 3), ("balanced", {}, 9)],
)
def test_a_run_is_the_same_in_any_number_of_workers(
    tmp_path: Path, uplink: str, clients: dict[str, Any], workers: int
) -> None:
    alone = run(tmp_path, 1, uplink=uplink, **clients)
    assert run(tmp_path, workers, uplink=uplink, **clients) == alone


def test_a_killed_worker_ends_the_run_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"worker 2 of 2, which trains c1, c3, was killed .*fewer"):
        run(tmp_path, 2, die)
    with pytest.raises(WorkerDied, match=r"worker 2 of 2.* ended with status 3.*__main__"):
        run(tmp_path, 2, leave)


def test_an_error_of_a_client_ends_the_run_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no such sensor") as caught:
        run(tmp_path, 2, fail)
    assert "worker_clients.py" in "".join(caught.value.__notes__), "where it was raised"


def test_a_callback_may_fail_or_end_the_run(tmp_path: Path) -> None:
    def bad(round_: int, scores: Mapping[str, float]) -> None:
        raise LookupError("no such score")

    with pytest.raises(LookupError, match="no such score"):
        run(tmp_path, 2, on_round=bad)
    ended = run(tmp_path, 2, on_round=lambda round_, scores: round_ == 2)
    assert len(ended["rounds"]) == 2


def test_what_no_other_process_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="top level of a module"):
        run(tmp_path, 2, make=lambda *given: MakePull()(*given))


@pytest.mark.parametrize(
    "clients",
    [{"minimum": 1}, {"quorum": 0.5, "patience": 0}, {"over_selection": 1.5, "fraction": 0.5}],
)
def test_rounds_that_depend_on_who_is_fastest_are_refused(
    tmp_path: Path, clients: dict[str, Any]
) -> None:
    with pytest.raises(ServerError, match="workers: rounds may go on without"):
        run(tmp_path, 2, **clients)


# ---- with TensorFlow ----


def case(**changes: Any) -> Case:
    grid = {"codec": [FEEDBACK], "model": ["mlp"], "clients": [3], **changes.pop("grid", {})}
    given = {"rounds": 2, "training": {"epochs": 1, "learning_rate": 0.1}, **changes}
    (only,) = Sweep.model_validate({"grid": grid, "run_workers": 2, "run": given}).cases()
    return only


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        case(),
        case(grid={"partition": ["dirichlet:0.5"], "codec": ["balanced"]}),
        case(grid={"runtime": ["litert"], "codec": ["extreme"]}),
        case(optimization={"method": "prune"}),
    ],
    ids=["feedback", "noniid", "litert", "prune"],
)
def test_a_case_of_a_sweep_is_the_same_in_workers(chosen: Case) -> None:
    pytest.importorskip("tensorflow_model_optimization")
    from featherfed.cli.sweep_case import run_case

    def result(workers: int) -> Any:
        told = json.loads(json.dumps(run_case(chosen, workers=workers)))
        del told["run"]
        return told

    assert result(2) == result(1)


def careful(model: Any, inputs: Any, targets: Any, round: int) -> Any:
    return model.fit(inputs, targets, epochs=1, batch_size=16, shuffle=False, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("loop", [None, careful], ids=["fit", "loop"])
def test_a_simulation_is_the_same_in_workers(loop: Any) -> None:
    pytest.importorskip("tensorflow_model_optimization")
    import tf_keras

    import featherfed
    from featherfed.datasets.partition import partition
    from featherfed.datasets.sources import load_train_test

    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.InputLayer((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    train, _ = load_train_test("digits")
    shards = [train.take(part) for part in partition(train.labels, 3, "iid", 0)]

    def result(workers: int) -> featherfed.History:
        return featherfed.simulate(
            model, clients=[(shard.images, shard.labels) for shard in shards],
            rounds=2, epochs=2, learning_rate=0.1, workers=workers, trainer=loop,
        )  # fmt: skip

    alone, together = result(1), result(2)
    assert together.digest == alone.digest
    assert together.final == alone.final, "of what the clients held back"
    with pytest.raises(ServerError, match="workers=0"):
        result(0)


def test_a_sweep_whose_runs_cannot_have_workers_is_refused() -> None:
    grid = {"codec": ["float32"], "clients": [3]}
    given = {"grid": grid, "run": {"rounds": 1}}
    assert Sweep.model_validate({**given, "run_workers": 3}).run_workers == 3
    with pytest.raises(ValueError, match="run_workers"):
        Sweep.model_validate({**given, "run_workers": 0})
