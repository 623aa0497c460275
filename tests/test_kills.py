"""SIGKILL at random moments and at the worst ones: nothing is lost, nothing counts twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.kills import Outcome, Storm, check_acks, light_spec, light_storm, newest_of, outcome
from support.processes import wait_until

CODECS = {"sketch": "balanced", "feedback": "topk(0.05) | quantize(4) | zstd"}


def quiet(directory: Path, uplink: str, rounds: int, clients: int) -> Outcome:
    """Return what the undisturbed run leaves."""
    with light_storm(directory, light_spec(uplink, rounds, clients), clients) as run:
        run.wait(60)
    return outcome(directory / "run.db")


@pytest.mark.parametrize("codec", CODECS)
def test_a_storm_of_kills_changes_nothing(codec: str, tmp_path: Path) -> None:
    spec = light_spec(CODECS[codec], seconds=0.2, gate=True)
    with light_storm(tmp_path / "storm", spec) as storm:
        storm.rage(25, 1, 10, newest_of(tmp_path / "storm"), gap=0.3)
        (tmp_path / "storm" / "over").touch()
        storm.wait(100)
    left = outcome(tmp_path / "storm" / "run.db")
    wanted = quiet(tmp_path / "quiet", CODECS[codec], 10, 5)
    assert left.digests == wanted.digests
    assert left.journal == wanted.journal
    assert left.refusals == 0
    assert check_acks(tmp_path / "storm", left) >= 10 * 5
    assert storm.kills["server"] > 3
    assert storm.kills["clients"] > 3


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
    return quiet(tmp_path_factory.mktemp("wanted") / "run", CODECS["feedback"], 3, 2)


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_the_worst_moment_a_run_goes_on_as_if_nothing_had_been(
    place: str, wanted: Outcome, tmp_path: Path
) -> None:
    spec = light_spec(CODECS["feedback"], 3, 2, fault=place)
    with light_storm(tmp_path / "run", spec, 2) as storm:
        storm.start(wait_until(lambda: killed(storm), 60))
        storm.wait(60)
    left = outcome(tmp_path / "run" / "run.db")
    assert (left.digests, left.journal) == (wanted.digests, wanted.journal)
    assert check_acks(tmp_path / "run", left) >= 3 * 2 - 1  # who dies on an ack has not noted it


def killed(storm: Storm) -> str | None:
    """Return who has killed itself."""
    return next((n for n, p in storm.running.items() if p.poll() == -signal.SIGKILL), None)
