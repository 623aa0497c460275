"""Accuracy under attack, rule by rule: real digits, a small network in numpy, the real coordinator.

Eleven clients, some of them hostile in every round: `flip` sends five times its update with the
sign turned, `scale` a thousand times its update, `noise` random values a hundred times as large.
Prints benchmarks/results/attackers.md; takes about eight minutes on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from support.clients import WithoutData
from support.models import summary

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest, TensorSpec, Uniform
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import ClientError, Rejected
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.settings.settings import Settings
from featherfed.sweep.simulate import simulate
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import image_task

CLIENTS, ROUNDS, EPOCHS, BATCH, RATE = 11, 10, 4, 32, 0.2
SEEDS = (0, 1, 2)
SKEWED = ("dirichlet:0.3", "dirichlet:1.0")
MODEL = Manifest((
    TensorSpec("hidden", (64, 64), initial=Uniform(0.2)), TensorSpec("hidden_bias", (64,)),
    TensorSpec("out", (64, 10), initial=Uniform(0.2)), TensorSpec("out_bias", (10,)),
))  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    "mean, no clipping": {"rule": "mean", "clip": 0},
    "mean, clip 10 (default)": {"rule": "mean"},
    "mean, clip 3": {"rule": "mean", "clip": 3},
    "mean, clip 1": {"rule": "mean", "clip": 1},
    "trimmed_mean": {"rule": "trimmed_mean", "byzantine": 3},
    "median": {"rule": "median", "byzantine": 3},
    "multi_krum": {"rule": "multi_krum", "byzantine": 3},
}
ATTACKS = [("none", 0), ("flip", 1), ("flip", 3), ("scale", 1), ("noise", 1), ("noise", 3)]


HEAD = f"""# Accuracy under attack

By `python benchmarks/attackers.py`: digits, eleven clients, ten rounds; accuracy on the test set in
percent, the mean of {len(SEEDS)} seeds and the lowest; "lost" where a model went beyond what a
float may be. Robust rules withstand three hostile clients; `clip 1` is `aggregation.clip = 1`.
"""


def _inputs(data: Dataset) -> Array:
    return (data.images.reshape(len(data), -1) / np.float32(255)).astype(np.float32)


def _forward(weights: Sequence[Array], x: Array) -> tuple[Array, Array]:
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    logits = hidden @ weights[2] + weights[3]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


class Perceptron(WithoutData):
    """A network trained by plain SGD, whose client may then attack with its update."""

    def __init__(self, data: Dataset, attack: str, seed: int) -> None:
        self._x, self._labels = _inputs(data), data.labels
        self._attack = attack
        self._draw = np.random.default_rng(seed)

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Return the weights after some epochs."""
        new = [w.copy() for w in weights]
        for _ in range(EPOCHS):
            order = self._draw.permutation(len(self._x))
            for at in range(0, len(order), BATCH):
                self._descend(new, order[at : at + BATCH])
        moved = zip(weights, new, strict=True)
        return TrainingResult([w + self._corrupt(n - w) for w, n in moved], 0.0)

    def _descend(self, w: list[Array], batch: Any) -> None:
        x = self._x[batch]
        hidden, error = _forward(w, x)
        error[np.arange(len(batch)), self._labels[batch]] -= 1
        error *= np.float32(RATE / len(batch))
        back = (error @ w[2].T) * (hidden > 0)
        for tensor, step in zip(
            w, (x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)), strict=True
        ):
            tensor -= step

    def _corrupt(self, update: Array) -> Array:
        if self._attack == "noise":
            noise = self._draw.standard_normal(update.shape).astype(np.float32)
            return noise * np.float32(100 * np.sqrt(np.mean(update**2)))
        return update * np.float32({"flip": -5, "scale": 1000}.get(self._attack, 1))


class TestSetEvaluator:
    """An evaluator with the loss and accuracy of a network on the test set."""

    def __init__(self, test: Dataset) -> None:
        self._x, self._labels = _inputs(test), test.labels

    def set_scaling(self, scaling: Scaling) -> None:
        """Do nothing: pictures are not standardised."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return the evaluation of some weights."""
        with np.errstate(over="ignore", invalid="ignore"):
            _, odds = _forward(weights, self._x)
        accuracy = float((odds.argmax(axis=1) == self._labels).mean())
        return Evaluation({"loss": 0.0, "accuracy": accuracy})


def accuracy(
    aggregation: dict[str, Any], uplink: str, attack: str, hostile: int, shards: str, seed: int
) -> float | None:
    """Return the final accuracy of a run with some hostile clients, None if it failed."""
    train, test = load_train_test("digits")
    task = image_task(test.input_shape, test.class_names)
    split = partition(train.labels, CLIENTS, shards, seed)
    parts = {f"c{i:02}": train.take(s) for i, s in enumerate(split)}
    settings = Settings.model_validate({
        "rounds": ROUNDS, "seed": seed, "aggregation": aggregation,
        "clients": {"minimum": CLIENTS, "quorum": 1.0},
        "compression": {"uplink": uplink, "downlink": "float16 | zstd"},
        "evaluation": {"clients": 0, "dataset": "digits"},
    })  # fmt: skip
    trainers = {
        name: Perceptron(part, attack if i < hostile else "none", 100 * seed + i)
        for i, (name, part) in enumerate(parts.items())
    }
    try:
        metrics = simulate(
            settings, model_json="{}", manifest=MODEL, evaluator=TestSetEvaluator(test),
            task=task,
            clients={
                name: summary(task, len(part)) for name, part in parts.items()
            },
            make_trainer=lambda name, plan, manifest, step: trainers[name],
        )  # fmt: skip
    except (ClientError, Rejected):
        return None
    return float(metrics["final"]["scores"]["accuracy"])


def cell(found: Sequence[float | None]) -> str:
    """Return a table cell: mean accuracy over the seeds, and the lowest."""
    if None in found:
        return "lost"
    told = [100 * one for one in found if one is not None]
    return f"{np.mean(told):.1f} ({min(told):.1f})"


def rows(names: Sequence[str], columns: Sequence[tuple[str, int, str]]) -> None:
    """Print a row for each rule and codec; columns are attack, hostile clients and partition."""
    for name in names:
        aggregation = RULES[name]
        sketched = ["sketch(0.2)"] if aggregation["rule"] == "mean" else []
        for uplink in ["quantize(8) | zstd", *sketched]:
            cells = [
                cell([accuracy(aggregation, uplink, *column, seed) for seed in SEEDS])
                for column in columns
            ]
            text = uplink.replace("|", "\\|")
            print(f"| {name} | `{text}` | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the page."""
    print(HEAD)
    heads = [f"{n} {attack}" if n else "no attacker" for attack, n in ATTACKS]
    print("| rule | uplink | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 2) + "|")
    rows(list(RULES), [(*attack, "iid") for attack in ATTACKS])
    print("\nWithout attackers, on skewed shards:\n")
    print("| rule | uplink | " + " | ".join(SKEWED) + " |")
    print("|---" * (len(SKEWED) + 2) + "|")
    rows([name for name in RULES if "mean," in name], [("none", 0, shards) for shards in SKEWED])


if __name__ == "__main__":
    main()
