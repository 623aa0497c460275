"""A client that lies about importance, and what that does to the model of all clients.

The seed CNN, real digits, `balanced`. The liar trains as the others do, and only its reports are
wrong: all bits to the largest tensor, and to the rows and columns that matter least.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from support.clients import WithoutData
from support.evaluator import NO_CLIENT
from support.keras_runs import keras_run

from featherfed.compression import sketch
from featherfed.compression.arrays import Array
from featherfed.compression.importance import NEUTRAL, Allocation
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import ClientError, Rejected
from featherfed.edge_client.trainer import Trainer, TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.server.settings.settings import Settings

SEEDS = (0, 1, 2)

_measure_honestly = sketch.measure_importance
_lying = False


def _report(tensors: Sequence[Array]) -> Allocation:
    """Return what the client that trained last reports."""
    own = _measure_honestly(tensors)
    if not _lying:
        return own
    levels = bytearray(len(tensors))
    levels[int(np.argmax([tensor.size for tensor in tensors]))] = 31
    codes = np.frombuffer(own.profile, np.uint8)
    return Allocation(bytes(levels), np.where(codes >= NEUTRAL, 0, 15).astype(np.uint8).tobytes())


class _Client(WithoutData):
    """A Keras trainer that notes whether its client lies before the update is encoded."""

    def __init__(self, trainer: Trainer, liar: bool) -> None:
        self._trainer, self._liar = trainer, liar

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return the weights after honest training."""
        global _lying
        _lying = self._liar
        return self._trainer.train(weights, task)


def _accuracy(
    liars: int,
    clients: int = 5,
    seed: int = 0,
    model: str = "cnn",
    clip: float = 10.0,
    shards: str = "iid",
) -> float | None:
    """Return a run's final accuracy in percent, None if the model is not finite any more."""
    train, test = load_train_test("digits")
    split = partition(train.labels, clients, shards, seed)
    parts = {f"c{i:02}": train.take(indices) for i, indices in enumerate(split)}
    settings = Settings.model_validate({
        "rounds": 7, "seed": seed, "model": {"name": model}, "aggregation": {"clip": clip},
        "training": {"learning_rate": 0.1}, "clients": {"minimum": clients, "quorum": 1.0},
        "evaluation": {**NO_CLIENT, "dataset": "digits"},
    })  # fmt: skip

    try:
        metrics = keras_run(
            settings, parts, test, lambda name, trainer: _Client(trainer, int(name[1:]) < liars)
        )
    except (ClientError, Rejected):
        return None
    return 100 * float(metrics["final"]["scores"]["accuracy"])


def _figures(name: str, found: Sequence[float | None]) -> dict[str, Any]:
    told = [one for one in found if one is not None]
    return {
        f"{name}: lowest accuracy, percent": round(min(told), 1) if told else None,
        f"{name}: runs that ended in NaN, of {len(found)}": len(found) - len(told),
    }


def measure(scratch: Path) -> dict[str, Any]:
    """Return accuracies of runs with and without liars."""
    sketch.measure_importance = _report
    try:
        return {
            **_figures("no liar of 5", [_accuracy(0, seed=seed) for seed in SEEDS]),
            **_figures("1 liar of 5", [_accuracy(1, seed=seed) for seed in SEEDS]),
            **_figures("2 liars of 5", [_accuracy(2)]),
            **_figures("1 liar of 5, clip = 1", [_accuracy(1, clip=1.0)]),
            **_figures("no liar of 11", [_accuracy(0, clients=11)]),
            **_figures("1 liar of 11", [_accuracy(1, clients=11)]),
            **_figures("no liar of 5, mlp", [_accuracy(0, model="mlp")]),
            **_figures("1 liar of 5, mlp", [_accuracy(1, model="mlp")]),
        }
    finally:
        sketch.measure_importance = _measure_honestly
