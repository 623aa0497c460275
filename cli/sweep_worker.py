"""A worker process of a sweep: how it starts, what it reports, and when it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.queues import Queue

from featherfed.models.importing import importing_tensorflow

_rounds: Queue[int] | None = None  # set in a worker


def start(rounds: Queue[int]) -> None:
    """Limit a worker to one thread: parallel runs use the cores better then, and repeat exactly.

    `rounds` gets the number of each round that it finishes.
    """
    global _rounds
    _rounds = rounds
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with importing_tensorflow():
        import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def report_round(round_: int) -> None:
    """Tell the sweep's process that a round is finished; does nothing outside of a worker."""
    if _rounds is not None:
        _rounds.put(round_)


def _end_with_parent() -> None:
    """End this worker when its parent has died; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
