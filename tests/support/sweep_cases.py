"""What stands in for a sweep's runs in worker processes: some fail, and one kills its worker."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from typing import Any

from featherfed.sweep.grid import Case

FAILS, KILLS = 1, 2
"""The seeds of the case that raises an error, and of the one whose process dies."""
_rounds: Connection | None = None


def start(rounds: Connection) -> None:
    global _rounds
    _rounds = rounds


def run(case: Case) -> dict[str, Any]:
    assert _rounds is not None
    if case.seed == FAILS:
        raise ValueError("no such data\nand more")
    if case.seed == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(case.settings.rounds):
        _rounds.send_bytes(b"r")
    return metrics(case)


def metrics(case: Case) -> dict[str, Any]:
    return {"metric": {"name": "accuracy"}, "final": {"scores": {"accuracy": case.seed / 10}}}
