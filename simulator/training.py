"""A tiny model, and training without data: updates follow from the client's name and the round."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import (
    Manifest,
    Role,
    TensorSpec,
    Uniform,
    weights_digest,
)
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Sums
from featherfed.tasks.task import image_task

MANIFEST = Manifest(
    (
        TensorSpec("kernel", (24, 32), initial=Uniform(0.1), prunable=True),
        TensorSpec("bias", (32,)),
        TensorSpec("variance", (32,), Role.NONNEGATIVE),
    )
)
HELD_OUT = 10
"""Examples that a client holds out."""
TASK = image_task((4, 4, 1), ("a", "b"))


class RandomWalk:
    """A trainer that moves all weights a little, and takes some simulated seconds for it."""

    def __init__(
        self,
        name: str,
        seconds: float,
        pause: Callable[[float], None],
        on_start: Callable[[pb.Train, bytes], None],
    ) -> None:
        """`on_start` gets the task and the digest of the weights that training starts from."""
        self._on_start = on_start
        self._name = name
        self._seconds = seconds
        self._pause = pause

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return weights that follow from the client's name, the round, and `weights`."""
        self._on_start(task, weights_digest(list(weights)))
        self._pause(self._seconds)
        draw = np.random.default_rng([zlib.crc32(self._name.encode()), task.round])
        moved = [w + draw.standard_normal(w.shape, np.float32) * np.float32(0.01) for w in weights]
        if task.sparsity:
            moved[0] = np.where(weights[0] == 0, np.float32(0), moved[0])
        return TrainingResult(moved, 0.5)

    def set_scaling(self, scaling: Scaling) -> None:
        """Do nothing: the task standardises nothing."""

    def evaluate(self, weights: Sequence[Array]) -> Sums | None:
        """Return sums that follow from the weights, as if of HELD_OUT examples."""
        loss = float(np.mean([np.mean((w - 1) ** 2) for w in weights]))
        right = zlib.crc32(self._name.encode()) % HELD_OUT
        return np.array([HELD_OUT, HELD_OUT * loss, right, HELD_OUT])


class DistanceEvaluator:
    """An evaluator whose loss is the mean square of the weights' distance from one."""

    def __init__(self, pause: Callable[[], None]) -> None:
        """`pause` lets other threads run meanwhile."""
        self._pause = pause

    def set_scaling(self, scaling: Scaling) -> None:
        """Do nothing: the task standardises nothing."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return figures that follow from the weights."""
        self._pause()
        loss = float(np.mean([np.mean((w - 1) ** 2) for w in weights]))
        return Evaluation({"loss": loss, "accuracy": 1 / (1 + loss)}, json.dumps([0.5, 0.5]))
