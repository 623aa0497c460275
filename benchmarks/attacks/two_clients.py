"""Two clients, one of them hostile, where no majority tells an outlier.

The seed CNN, real digits, seven rounds. A run without an accuracy is one that ended because the
honest client could not train any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from support.clients import WithoutData
from support.evaluator import NO_CLIENT
from support.keras_runs import keras_run

from featherfed.compression.arrays import Array
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import ClientError, Rejected
from featherfed.edge_client.trainer import Trainer, TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.server.settings.settings import Settings

ROUNDS = 7
LARGEST = np.float32(4e11)
"""What the server took from a client before it looked at anything else."""
Corrupt = Callable[[Array, int, np.random.Generator], Array]
"""(honest update, round, randomness) -> what is sent instead."""


def _huge(update: Array, round_: int, draw: np.random.Generator) -> Array:
    return LARGEST * np.sign(draw.standard_normal(update.shape)).astype(np.float32)


def _huge_once(update: Array, round_: int, draw: np.random.Generator) -> Array:
    return _huge(update, round_, draw) if round_ == 2 else update


def _growing(update: Array, round_: int, draw: np.random.Generator) -> Array:
    return np.float32(-(10.0**round_)) * update


def _tiny(update: Array, round_: int, draw: np.random.Generator) -> Array:
    return np.float32(1e-6) * update


class _Hostile(WithoutData):
    """Trains as the honest client does, and sends something else."""

    def __init__(self, trainer: Trainer, corrupt: Corrupt) -> None:
        self._trainer, self._corrupt = trainer, corrupt
        self._draw = np.random.default_rng(1)

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return weights that give the corrupt update, within what the server takes."""
        with np.errstate(all="ignore"):
            trained = self._trainer.train(weights, task).weights
            moved = [
                w + self._corrupt(np.nan_to_num(t - w), task.round, self._draw)
                for w, t in zip(weights, trained, strict=True)
            ]
        return TrainingResult([np.clip(w, -LARGEST, LARGEST) for w in moved], 0.0)


def _run(corrupt: Corrupt | None, alone: bool = False) -> dict[str, Any]:
    train, test = load_train_test("digits")
    names = ["hostile"] if alone else ["honest", "hostile"]
    shards = partition(train.labels, 2, "iid", 0)
    parts = {name: train.take(shard) for name, shard in zip(names, shards, strict=False)}
    settings = Settings.model_validate({
        "rounds": ROUNDS, "training": {"learning_rate": 0.1},
        "clients": {"minimum": len(names), "quorum": 1.0},
        "compression": {"uplink": "float32 | zstd", "downlink": "float32 | zstd"},
        "evaluation": {**NO_CLIENT, "dataset": "digits"},
    })  # fmt: skip

    def wrap(name: str, trainer: Trainer) -> Trainer:
        return _Hostile(trainer, corrupt) if corrupt and name == "hostile" else trainer

    told: dict[str, Any] = {"final accuracy, percent": None}
    try:
        metrics = keras_run(settings, parts, test, wrap)
    except (ClientError, Rejected) as error:
        return {**told, "the honest client ends, and is told": str(error)}
    rounds = metrics["rounds"]
    told["final accuracy, percent"] = round(100 * float(metrics["final"]["scores"]["accuracy"]), 1)
    told["versions whose loss is not finite"] = sum(r["scores"]["loss"] is None for r in rounds)
    told["discarded rounds"] = sum("discarded" in r for r in rounds)
    return told


def measure(scratch: Path) -> dict[str, Any]:
    """Return what becomes of runs of two clients, and of one, by attack."""
    runs = {
        "no attacker": _run(None),
        "4e11 in round 2": _run(_huge_once),
        "4e11 in every round": _run(_huge),
        "minus 10^r times the update in round r": _run(_growing),
        "a millionth of the update": _run(_tiny),
        "alone, 4e11 in round 2": _run(_huge_once, alone=True),
        "alone, 4e11 in every round": _run(_huge, alone=True),
    }
    return {
        f"{name}: {figure}": value for name, told in runs.items() for figure, value in told.items()
    }
