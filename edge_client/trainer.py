"""The protocol of local training, which the Keras and LiteRT trainers and users' own implement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.examples import Examples
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Sums


@dataclass(frozen=True)
class TrainingResult:
    """Result of local training: weights in manifest order, mean loss of the last epoch."""

    weights: list[Array]
    loss: float


@runtime_checkable
class Trainer(Protocol):
    """Trains and evaluates the plan's model on the client's data."""

    def set_scaling(self, scaling: Scaling) -> None:
        """Standardise the data by `scaling` from now on; never called if the task needs none."""

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Train from `weights`, which are already masked to the task's sparsity."""

    def evaluate(self, weights: Sequence[Array]) -> Sums | None:
        """Return the sums (tasks/scoring.py) on the held-out examples, None if there are none."""


@runtime_checkable
class HasExamples(Protocol):
    """A trainer that tells its examples, on which the final model's files are measured."""

    @property
    def examples(self) -> Examples:
        """The client's examples, standardised as they are trained on."""


class RenewableTrainer(Trainer, Protocol):
    """A trainer whose data may be replaced, as they grow."""

    def set_examples(self, examples: Examples) -> None:
        """Train and evaluate on other examples from now on, standardised as the former ones."""


@runtime_checkable
class CalibratingTrainer(Trainer, Protocol):
    """A trainer of models with batch normalisation."""

    def calibrate(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return `weights` with their moving averages measured anew (calibration.py), and the loss.

        Nothing else changes.
        """


MakeTrainer = Callable[[pb.Plan, Manifest, bytes | None], Trainer]
"""(plan, manifest, exported training step for LiteRT or None) -> a `Trainer`."""

OnStep = Callable[[int, int, int], None]
"""Called after each training step with round, steps done and steps in all."""

KerasLoop = Callable[[Any, Any, Any, int], Any]
"""A user's own training loop: (model, inputs, targets, round) trains a tf_keras model in place.

The model is compiled with the run's optimizer, learning rate and loss; inputs and targets are what
its `fit` takes, all of a client's training examples. The function may return the mean loss, or what
`fit` returns; otherwise the loss is measured."""
