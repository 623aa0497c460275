"""A worker process of a sweep: how it starts, what it reports, and when it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from typing import Any

from featherfed.cli.sweep_case import run_case
from featherfed.models.importing import importing_tensorflow
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
    use_one_thread()


def use_one_thread() -> None:
    """Limit TensorFlow to one thread: parallel runs use the cores better, and repeat exactly."""
    with importing_tensorflow():
        import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != 1:  # a process is used again
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def run(case: Case) -> dict[str, Any]:
    """Run a case in a worker that has started; return its metrics."""
    rounds = _rounds
    assert rounds is not None, "a worker starts first"
    return run_case(case, lambda: rounds.send_bytes(ROUND))


def _end_with_parent() -> None:
    """End this worker when its parent has died; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
