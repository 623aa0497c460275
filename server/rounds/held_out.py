"""Sums that clients send of models on their held-out examples, and the scores that follow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import read_evaluation
from featherfed.tasks.scoring import Scoring, Sums
from featherfed.tasks.task import Task


class HeldOutScores:
    """Reads clients' sums, adds them, and scores them by the task's loss and metrics."""

    def __init__(self, task: Task) -> None:
        self._scoring = Scoring(task)

    def read(self, message: pb.Evaluation, most: int) -> bytes:
        """Return a client's sums as they are stored, little-endian float32; empty if it has none.

        `most`: how many examples it may hold out. Raises TaskError for what no examples give.
        """
        sums = read_evaluation(message)
        if not len(sums):
            return b""
        self._scoring.check(sums)
        if sums[0] > most:
            raise TaskError(f"sums of {sums[0]:.0f} examples; at most {most} are possible")
        return sums.astype("<f4").tobytes()

    def count(self, stored: Iterable[bytes]) -> int:
        """Return the number of examples of all these sums."""
        return int(sum(np.frombuffer(blob, "<f4", count=1)[0] for blob in stored))

    def scores(self, stored: Iterable[bytes]) -> dict[str, float]:
        """Return the scores on the examples of all these sums; nothing if they give none."""
        total: Sums = np.zeros(self._scoring.size)
        for blob in stored:
            if len(blob) == 4 * self._scoring.size:
                total += np.frombuffer(blob, "<f4")
        if not total[0] >= 1:
            return {}
        scores = self._scoring.scores(total)
        return scores if self._scoring.is_usable(scores) else {}
