"""Judging a model on the test set: the protocol that an entry point implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from featherfed.compression.arrays import Array


@dataclass(frozen=True)
class Evaluation:
    """A model on the test set; `prediction`: class probabilities for the example picture (JSON)."""

    loss: float
    accuracy: float
    prediction: str


class Evaluator(Protocol):
    """Judges weights; built by the entry point, since it needs TensorFlow."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return what float32 `weights` in manifest order are worth on the test set."""
