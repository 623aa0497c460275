"""A worker process of a sweep: how it starts, what it reports, and when it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from typing import Any

from featherfed.cli.sweep_case import run_case
from featherfed.models.threads import ONE_THREAD
from featherfed.sweep.grid import Case

_rounds: Connection | None = None  # set in a worker

ROUND = b"r"
"""What a worker sends for each round that it finishes."""


def start(rounds: Connection) -> None:
    """Prepare a worker; `rounds` gets ROUND for each round that it finishes.

    A pipe that all workers write to takes messages of a few bytes whole, and has no lock that a
    killed worker could keep.
    """
    global _rounds
    _rounds = rounds
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Parallel runs use the cores better so, and repeat exactly.
    ONE_THREAD.use()


def run(case: Case, workers: int = 1) -> dict[str, Any]:
    """Run a case in a worker that has started, with `workers` of its own; return its metrics."""
    rounds = _rounds
    assert rounds is not None, "a worker starts first"
    return run_case(case, lambda: rounds.send_bytes(ROUND), workers)


def _end_with_parent() -> None:
    """End this worker when its parent has died; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
