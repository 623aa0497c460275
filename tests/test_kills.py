"""SIGKILL at random moments and at chosen steps: no update is lost, and none counts twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.kills import (
    KillableProcesses,
    Outcome,
    check_acks,
    newest_version_of,
    numpy_processes,
    numpy_spec,
    outcome,
)
from support.processes import wait_until

CODECS = {"sketch": "balanced", "feedback": "topk(0.05) | quantize(4) | zstd"}


def undisturbed(directory: Path, uplink: str, rounds: int, clients: int) -> Outcome:
    """Return the result of a run that nobody disturbs."""
    with numpy_processes(directory, numpy_spec(uplink, rounds, clients), clients) as run:
        run.wait(60)
    return outcome(directory / "run.db")


# The other tests kill at chosen steps of a run with feedback.
@pytest.mark.slow  # many starts; those at every step are below
@pytest.mark.parametrize("codec", ["sketch", "feedback"])
def test_kills_at_random_moments_change_neither_model_nor_journal(
    codec: str, tmp_path: Path
) -> None:
    spec = numpy_spec(CODECS[codec], seconds=0.2, hold_last_round=True)
    with numpy_processes(tmp_path / "killed", spec) as processes:
        processes.kill_at_random(25, 1, 10, newest_version_of(tmp_path / "killed"), gap=0.3)
        (tmp_path / "killed" / "over").touch()
        processes.wait(100)
    left = outcome(tmp_path / "killed" / "run.db")
    wanted = undisturbed(tmp_path / "undisturbed", CODECS[codec], 10, 5)
    assert left.digests == wanted.digests
    assert left.journal == wanted.journal
    assert left.refusals == 0
    assert check_acks(tmp_path / "killed", left) >= 10 * 5
    assert processes.kills["server"] > 3
    assert processes.kills["clients"] > 3


SERVER = [
    "joined, before the answer",
    "in the opening's transaction",
    "before the model is sent",
    "the model is sent",
    "received, before the journal",
    "in the journal's transaction",
    "journaled, before the acknowledgement",
    "in mid-aggregation",
    "in the version's transaction",
    "the file counts the version, the database does not",
    "aggregated, before anyone hears of it",
]
CLIENT = [
    "downloaded",
    "before the model is kept",
    "the model is kept",
    "torn write",
    "before sending",
    "acknowledged",
    "before settling",
    "between settle's two files",
    "settled",
]
PLACES = [*(f"server: {place}" for place in SERVER), *(f"client: {place}" for place in CLIENT)]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return undisturbed(tmp_path_factory.mktemp("wanted") / "run", CODECS["feedback"], 3, 2)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_any_step_changes_neither_model_nor_journal(
    place: str, wanted: Outcome, tmp_path: Path
) -> None:
    spec = numpy_spec(CODECS["feedback"], 3, 2, kill_at=place)
    with numpy_processes(tmp_path / "run", spec, 2) as processes:
        processes.start(wait_until(lambda: killed(processes), 60))
        processes.wait(60)
    left = outcome(tmp_path / "run" / "run.db")
    assert (left.digests, left.journal) == (wanted.digests, wanted.journal)
    assert check_acks(tmp_path / "run", left) >= 3 * 2 - 1  # who dies on an ack has not noted it


def killed(processes: KillableProcesses) -> str | None:
    """Return the process that has killed itself, if any."""
    return next((n for n, p in processes.running.items() if p.poll() == -signal.SIGKILL), None)
