"""How good models are: by the evaluator that an entry point gives, or by sums that clients send."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from featherfed.compression.arrays import Array
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.storage.records import Scores
from featherfed.tasks.errors import TaskError
from featherfed.tasks.scaling import Scaling


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


def read_sums(held_out: HeldOutScores, message: pb.Evaluation, most: int) -> bytes:
    """Return what `HeldOutScores.read` does; raise Refused for what no examples give."""
    try:
        return held_out.read(message, most)
    except TaskError as error:
        raise Refused(pb.MALFORMED, f"evaluation: {error}") from error


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
