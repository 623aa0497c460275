"""How good models are: the evaluator that an entry point gives, and sums that clients send."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import read_evaluation
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Scoring, Sums
from featherfed.tasks.task import Task

Scores = dict[str, float]
"""The mean loss and each metric of the task by name; nothing unless all of them are finite."""


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on the server's data set.

    `scores`: loss and metrics by name. `prediction`: the model's answer to the example that is
    shown, as JSON; empty if none is.
    """

    scores: Scores
    prediction: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether all scores are finite."""
        return all(map(math.isfinite, self.scores.values()))


class Evaluator(Protocol):
    """Evaluates weights; an entry point builds it, since it needs data and TensorFlow."""

    def set_scaling(self, scaling: Scaling) -> None:
        """Standardise the data by `scaling` from now on; never called if the task needs none."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Evaluate float32 `weights` in manifest order."""


class HeldOutScores:
    """Checks, adds and scores the sums that clients send of their held-out examples."""

    def __init__(self, task: Task) -> None:
        self._scoring = Scoring(task)

    def check(self, message: pb.Evaluation, most: int) -> bytes:
        """Return a client's sums as they are stored; empty if it sends none.

        `most`: how many examples it holds out. Raises Refused for what no examples give.
        """
        sums = read_evaluation(message)
        if not len(sums):
            return b""
        try:
            self._scoring.check(sums)
        except TaskError as error:
            raise Refused(pb.MALFORMED, f"evaluation: {error}") from error
        if sums[0] > most:
            raise Refused(
                pb.BAD_EXAMPLE_COUNT,
                f"an evaluation on {sums[0]:.0f} examples; this client joined with {most} of them",
            )
        return sums.astype("<f4").tobytes()

    def scores(self, stored: Iterable[bytes]) -> Scores:
        """Return the scores on all examples of these sums; nothing if they give none."""
        total: Sums = np.zeros(self._scoring.size)
        for blob in stored:
            if len(blob) == 4 * self._scoring.size:
                total += np.frombuffer(blob, "<f4")
        if total[0] < 1 or not np.isfinite(total).all():
            return {}
        scores = self._scoring.scores(total)
        return scores if self._scoring.is_usable(scores) else {}


def finite(scores: Mapping[str, float]) -> Scores:
    """Return the scores if all are finite, else nothing."""
    return dict(scores) if all(map(math.isfinite, scores.values())) else {}


def drawn(clients: Iterable[str], count: int, secret: int, round_: int) -> frozenset[str]:
    """Return `count` of a round's clients, or all if they are fewer, drawn by the run's secret.

    It draws the same ones after a restart.
    """

    def order(client: str) -> bytes:
        return hashlib.sha256(f"evaluation {secret} {round_} {client}".encode()).digest()

    return frozenset(heapq.nsmallest(count, clients, key=order))
