"""The protocol of local training, which the Keras and LiteRT trainers implement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.proto import federation_pb2 as pb


@dataclass(frozen=True)
class TrainingResult:
    """Result of local training: weights in manifest order, loss and accuracy of the last epoch."""

    weights: list[Array]
    loss: float
    accuracy: float


class Trainer(Protocol):
    """Trains the plan's model on the client's data."""

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Train from `weights`, which are already masked to the task's sparsity."""


MakeTrainer = Callable[[pb.Plan, Manifest, bytes | None], Trainer]
"""(plan, manifest, exported training step for LiteRT or None) -> a `Trainer`."""

OnStep = Callable[[int, int, int], None]
"""Called after each training step with round, steps done and steps in all."""
