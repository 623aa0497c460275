"""A hundred clients that send at the same moment: all are acknowledged, in little memory."""

from __future__ import annotations

from pathlib import Path

from support.kills import outcome
from support.load import measure_load


def test_a_hundred_clients_that_send_at_once_are_all_acknowledged(tmp_path: Path) -> None:
    seen = measure_load(tmp_path / "run", 100, "cnn")
    assert seen["retries"] == {}
    assert seen["peak_mb"] < seen["idle_mb"] + 80
    assert len(outcome(tmp_path / "run" / "run.db").journal) == 100
