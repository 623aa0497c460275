"""Evaluating a model on the test set: the protocol that an entry point implements."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from featherfed.compression.arrays import Array


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on the test set.

    `accuracy`: 0 to 1; `prediction`: class probabilities for the example picture, as JSON.
    """

    loss: float
    accuracy: float
    prediction: str


class Evaluator(Protocol):
    """Evaluates weights; an entry point builds it, since it needs TensorFlow."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Evaluate float32 `weights` in manifest order."""


def drawn(clients: Iterable[str], count: int, secret: int, round_: int) -> frozenset[str]:
    """Return `count` of a round's clients, or all if they are fewer, drawn by the run's secret.

    It draws the same ones after a restart.
    """

    def order(client: str) -> bytes:
        return hashlib.sha256(f"evaluation {secret} {round_} {client}".encode()).digest()

    return frozenset(heapq.nsmallest(count, clients, key=order))
