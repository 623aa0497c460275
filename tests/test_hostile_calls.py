"""Some thousand hostile calls on a live server: all are answered, and no honest client notices."""

from __future__ import annotations

from pathlib import Path

from support.hostile_calls import run_under_attack
from support.kills import outcome

CALLS = 5000


def test_hostile_calls_change_nothing_for_honest_clients(tmp_path: Path) -> None:
    run_under_attack(tmp_path / "undisturbed", 0)
    seen = run_under_attack(tmp_path / "attacked", CALLS)
    wanted = outcome(tmp_path / "undisturbed" / "run.db")
    left = outcome(tmp_path / "attacked" / "run.db")
    assert left.digests == wanted.digests
    assert {client for _, client in left.journal} == {"c0", "c1", "c2"}
    assert sum(seen["codes"].values()) == CALLS
    assert seen["after_mb"] < seen["before_mb"] + 7
    log = (tmp_path / "attacked" / "server.log").read_text("utf-8")
    assert "Traceback" not in log, log[-2000:]
