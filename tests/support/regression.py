"""A task without pictures: two numbers from three, by a linear model in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import (
    Manifest,
    TensorSpec,
    Uniform,
    weights_digest,
)
from featherfed.edge_client.session import Profile
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.message import statistics_message
from featherfed.tasks.scaling import Scaling, Statistics
from featherfed.tasks.scoring import Scoring, Sums, evaluate
from featherfed.tasks.task import Input, Target, TargetKind, Task

LINEAR = Manifest((TensorSpec("kernel", (3, 2), initial=Uniform(0.5)), TensorSpec("bias", (2,))))
REGRESSION = Task(
    (Input("sensors", "float32", (3,), standardize=True),),
    Target(TargetKind.VALUES, (2,), standardize=True),
    metrics=("rmse", "mae", "r2"),
)
HELD_OUT = 10
SETTINGS = {
    "inputs": [{"name": "sensors", "dtype": "float32", "shape": [3], "standardize": True}],
    "target": {"kind": "values", "shape": [2], "standardize": True},
    "metrics": ["rmse", "mae", "r2"],
}
"""The task as a run file has it."""


class LinearClient:
    """A client's data, its profile, and its trainer."""

    def __init__(self, name: str, seed: int, count: int = 60) -> None:
        draw = np.random.default_rng(seed)
        self.name = name
        self.inputs = draw.normal([5, -200, 0.01], [1, 50, 0.002], (count, 3)).astype(np.float32)
        truth = np.array([[3, 0.1], [0.02, -4], [500, 2]], np.float32)
        noise = draw.normal(0, 0.1, (count, 2))
        self.targets = (self.inputs @ truth + noise + 40).astype(np.float32)
        self.scaling: Scaling | None = None
        self.given = 0
        """How often it was told a scaling."""
        self.seen: dict[bytes, list[Array]] = {}
        """Weights that it evaluated, by digest."""

    def profile(self) -> Profile:
        """Return how the client describes itself."""
        x, y = self.inputs[:-HELD_OUT], self.targets[:-HELD_OUT]
        data = pb.DataSummary(
            num_examples=len(x),
            num_held_out=HELD_OUT,
            inputs=[pb.TensorSummary(dtype="float32", shape=[3])],
            target=pb.TensorSummary(dtype="float32", shape=[2]),
            statistics=statistics_message(Statistics.of(REGRESSION, [x], y)),
        )
        return Profile(self.name, data, "numpy", ("none",), "0")

    def set_scaling(self, scaling: Scaling) -> None:
        """Standardise the data by `scaling` from now on."""
        self.scaling = scaling
        self.given += 1

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return the weights after ten steps of gradient descent on all training examples."""
        assert self.scaling is not None, "told before"
        (x,) = self.scaling.prepare([self.inputs[:-HELD_OUT]])
        y = self.scaling.prepare_target(self.targets[:-HELD_OUT])
        kernel, bias = (w.copy() for w in weights)
        for _ in range(10):
            error = x @ kernel + bias - y
            kernel -= np.float32(0.1) * (x.T @ error / np.float32(len(x)))
            bias -= np.float32(0.1) * error.mean(axis=0)
        return TrainingResult([kernel, bias], float(np.square(error).mean()))

    def evaluate(self, weights: Sequence[Array]) -> Sums | None:
        """Return the sums on the held-out examples."""
        assert self.scaling is not None, "told before"
        self.seen[weights_digest(list(weights))] = [w.copy() for w in weights]
        kernel, bias = weights
        return evaluate(
            Scoring(REGRESSION, self.scaling),
            lambda inputs: inputs[0] @ kernel + bias,
            self.scaling.prepare([self.inputs[-HELD_OUT:]]),
            self.targets[-HELD_OUT:],
        )


def scores_by_hand(clients: Sequence[LinearClient], weights: Sequence[Array]) -> dict[str, float]:
    """Return the scores of weights on the held-out examples of all clients, in plain numpy."""
    scaling = clients[0].scaling
    assert scaling is not None
    assert scaling.target is not None
    x = np.concatenate([client.inputs[-HELD_OUT:] for client in clients])
    y = np.concatenate([client.targets[-HELD_OUT:] for client in clients]).astype(np.float64)
    kernel, bias = weights
    learned = scaling.prepare([x])[0] @ kernel + bias
    answers = learned * scaling.target.deviation + scaling.target.mean
    error = answers - y
    return {
        "loss": float(
            np.square(learned - (y - scaling.target.mean) / scaling.target.deviation).mean()
        ),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "mae": float(np.abs(error).mean()),
        "r2": float(1 - np.square(error).sum() / np.square(y - y.mean()).sum()),
    }
