"""Evaluating a model on the test set: the protocol that an entry point implements."""

from __future__ import annotations

from collections.abc import Sequence
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
