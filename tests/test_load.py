"""A hundred clients that send at the same moment: all are acknowledged, in little memory."""

from __future__ import annotations

from pathlib import Path

from support.kills import outcome
from support.load import load


def test_a_crowd_is_served(tmp_path: Path) -> None:
    seen = load(tmp_path / "run", 100, "cnn")
    assert seen["retries"] == {}
    assert seen["peak_mb"] < seen["idle_mb"] + 80
    assert len(outcome(tmp_path / "run" / "run.db").journal) == 100
