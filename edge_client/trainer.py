"""What trains a client's model: the protocol that Keras and LiteRT implement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.proto import federation_pb2 as pb


@dataclass(frozen=True)
class Trained:
    """What local training gave: weights in manifest order, loss and accuracy of the last epoch."""

    weights: list[Array]
    loss: float
    accuracy: float


class Trainer(Protocol):
    """Trains the plan's model on the client's data, which it alone sees."""

    def train(self, weights: Sequence[Array], task: pb.Train) -> Trained:
        """Return what training gives from `weights`, already masked to the task's sparsity."""


MakeTrainer = Callable[[pb.Plan, Manifest, bytes | None], Trainer]
"""Plan, manifest and, for LiteRT, the exported training step -> a trainer."""
