"""Runs of a sweep that fail, or whose worker is killed, end alone; the others go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support import sweep_cases

from featherfed.cli import sweep
from featherfed.cli.sweep_outcome import Outcome
from featherfed.cli.sweep_processes import KILLED, ProcessRunner
from featherfed.server.errors import ServerError
from featherfed.sweep import results
from featherfed.sweep.grid import Case, Sweep

TEXT = """
name = "small"
output = "out"
[grid]
codec = ["float32"]
seed = [0, 1, 2, 3, 4, 5]
[run]
rounds = 3
"""


def cases() -> list[Case]:
    grid = {"codec": ["float32"], "seed": list(range(6))}
    return list(Sweep.model_validate({"grid": grid, "run": {"rounds": 3}}).cases())


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failed_case_and_a_killed_worker_leave_the_others_alone(workers: int) -> None:
    counted: list[int] = []
    runner = ProcessRunner(workers, counted.append, sweep_cases.start, sweep_cases.run)
    outcomes = {outcome.case.seed: outcome for outcome in runner.run(cases())}
    assert sorted(outcomes) == [0, 1, 2, 3, 4, 5]
    failed, killed = outcomes.pop(sweep_cases.FAILS), outcomes.pop(sweep_cases.KILLS)
    assert (failed.metrics, failed.error) == (None, "ValueError: no such data")
    assert "and more" in failed.details
    assert (killed.metrics, killed.error) == (None, KILLED)
    for outcome in outcomes.values():
        assert outcome.metrics == sweep_cases.metrics(outcome.case)
    assert sum(counted) >= 3 * len(outcomes), "one that ran beside the killed one may run again"


class Fails:
    """A runner of which nothing comes back."""

    def run(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        for case in cases:
            yield Outcome(case, error="OSError: gone", details="a traceback")


def test_what_failed_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep.toml").write_text(TEXT, "utf-8")
    tried = []

    def maker(*_: object) -> sweep.MakeRunner:
        tried.append(1)
        return lambda count, on_rounds: Fails()

    monkeypatch.setattr(sweep, "_maker", maker)
    for _ in range(2):
        with pytest.raises(ServerError, match=r"6 of 6 runs failed[\s\S]*seed5.*OSError: gone"):
            sweep.run_sweep(tmp_path / "sweep.toml", 1, tmp_path / "out", None)
    assert len(tried) == 2
    assert len(list((tmp_path / "out" / "errors").glob("*.txt"))) == 6
    assert not list((tmp_path / "out" / "cases").iterdir())


def test_a_result_ends_what_was_kept_of_a_failure(tmp_path: Path) -> None:
    case = cases()[3]
    assert sweep._save(Outcome(case, error="E: no", details="why"), tmp_path) == "failed: E: no"
    assert results.error_path(tmp_path, case).read_text("utf-8") == "why"
    assert sweep._save(Outcome(case, sweep_cases.metrics(case)), tmp_path) == "0.3000"
    assert not results.error_path(tmp_path, case).exists()
    assert json.loads(results.result_path(tmp_path, case).read_text("utf-8"))
