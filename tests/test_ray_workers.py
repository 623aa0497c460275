"""A case on a Ray cluster whose clients train in workers: same digest, and enough cores."""

from __future__ import annotations

import os

import pytest

from featherfed.cli.sweep_case import run_case
from featherfed.server.errors import ServerError
from featherfed.sweep.grid import Sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray leaves its log files open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_clients_of_a_case_train_side_by_side() -> None:
    pytest.importorskip("ray", reason="needs featherfed's extra `cluster`")
    from featherfed.cli.sweep_ray import RayRunner

    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores")
    grid = {"codec": ["balanced"], "model": ["mlp"], "clients": [2]}
    run = {"rounds": 1, "training": {"epochs": 1, "learning_rate": 0.1}}
    (case,) = Sweep.model_validate({"grid": grid, "run": run, "run_workers": 2}).cases()
    (outcome,) = RayRunner("local", 2**28, 2, lambda rounds: None).run([case])
    assert outcome.metrics is not None, outcome.details
    assert outcome.metrics["final"]["digest"] == run_case(case)["final"]["digest"]
    with pytest.raises(ServerError, match=r"run_workers = 9999, and no node .* than \d+ cores"):
        RayRunner("local", 2**28, 9999, lambda rounds: None)
