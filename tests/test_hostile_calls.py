"""Some thousand hostile calls on a live server: every one gets an answer, nobody honest notices."""

from __future__ import annotations

from pathlib import Path

from support.hostile_calls import siege
from support.kills import outcome

CALLS = 5000


def test_hostile_calls_change_nothing(tmp_path: Path) -> None:
    siege(tmp_path / "peace", 0)
    seen = siege(tmp_path / "siege", CALLS)
    wanted = outcome(tmp_path / "peace" / "run.db")
    left = outcome(tmp_path / "siege" / "run.db")
    assert left.digests == wanted.digests
    assert {client for _, client in left.journal} == {"c0", "c1", "c2"}
    assert sum(seen["codes"].values()) == CALLS
    assert seen["after_mb"] < seen["before_mb"] + 7
    log = (tmp_path / "siege" / "server.log").read_text("utf-8")
    assert "Traceback" not in log, log[-2000:]
