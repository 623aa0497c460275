"""Measures how far LiteRT's training differs from Keras, and Keras from itself: `make bench`.

Every case starts from weights that some steps of Adam have trained, and goes 1 and 100 steps on the
same batches of Fashion-MNIST with LiteRT and with Keras and one thread; then, for the noise, with
Keras and two threads (which split long sums), with the examples of each batch in reverse order
(which are then added from the other end), and without oneDNN (whose kernels add in another order,
within an example, too). Each has a process of its own, since TensorFlow's threads are set once.

The noise is mostly tiny but sometimes jumps, when it moves an activation across a ReLU's zero, so
every case is repeated with other batches, and the medians are compared.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from featherfed.api.machine import machine
from featherfed.compression.arrays import Array
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.order import epoch_order, round_seed
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.exporter.training_step import TrainingStepOptions, export_training_step
from featherfed.models import zoo
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method

RESULT = Path(__file__).parent / "results" / "parity.json"
RUNNERS = ("litert", "keras", "threads", "order", "kernels")
STEPS = (1, 100)
BATCH, WARM_UP, REPEATS = 32, 300, 5
SPARSITY = 0.8
layers = tf_keras.layers
Stack = Callable[[], Sequence[Any]]


def _conv(**options: Any) -> Any:
    return layers.Conv2D(16, 3, activation="relu", **options)


LAYERS: dict[str, Stack] = {
    "Conv2D, max pool": lambda: [_conv(), layers.MaxPooling2D()],
    "Conv2D, stride 2, same": lambda: [_conv(strides=2, padding="same")],
    "Conv2D, dilation 2": lambda: [_conv(dilation_rate=2), layers.MaxPooling2D(4)],
    "Conv2D, overlapping max pool": lambda: [_conv(), layers.MaxPooling2D(3, strides=2)],
    "Conv2D, average pool": lambda: [_conv(), layers.AveragePooling2D(2)],
    "Conv2D, global average": lambda: [_conv(), layers.GlobalAveragePooling2D()],
    "DepthwiseConv2D": lambda: [_conv(strides=2), layers.DepthwiseConv2D(3, activation="relu")],
    "SeparableConv2D": lambda: [
        _conv(strides=2),
        layers.SeparableConv2D(32, 3, activation="relu"),
    ],
    "Conv1D": lambda: [layers.Reshape((28, 28)), layers.Conv1D(32, 3, activation="relu")],
    "Dense": lambda: [layers.Flatten(), layers.Dense(64, activation="tanh")],
    "BatchNormalization": lambda: [
        layers.Conv2D(16, 3, strides=2, use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
    ],
    "LayerNormalization": lambda: [
        layers.Flatten(), layers.Dense(64), layers.LayerNormalization(), layers.ReLU()
    ],
    "Embedding": lambda: [
        layers.MaxPooling2D(4), layers.Rescaling(255.0), layers.Reshape((49,)),
        layers.Embedding(256, 8),
    ],
    "GRU": lambda: [layers.Reshape((28, 28)), layers.GRU(32, unroll=True)],
    "LSTM": lambda: [layers.Reshape((28, 28)), layers.LSTM(32, unroll=True)],
    "SimpleRNN": lambda: [layers.Reshape((28, 28)), layers.SimpleRNN(32, unroll=True)],
}  # fmt: skip
METHODS = (Method.NONE, Method.PRUNE, Method.QAT)


@dataclass(frozen=True)
class Case:
    """A model and a method."""

    kind: str
    name: str
    method: Method = Method.NONE

    def build(self) -> FederatedModel:
        """Return the model, as Keras starts it."""
        if self.kind == "model":
            model = zoo.build(self.name, (28, 28, 1), 10)
        else:
            end = [layers.Flatten(), layers.Dense(10, activation="softmax")]
            image = layers.InputLayer((28, 28, 1))
            model = tf_keras.Sequential([image, *LAYERS[self.name](), *end])
        return FederatedModel(model, Optimization(self.method))

    @property
    def sparsity(self) -> float:
        """The sparsity to train with."""
        return SPARSITY if self.method is Method.PRUNE else 0.0


CASES = [
    *(Case("layer", name) for name in LAYERS),
    *(
        Case("model", name, method)
        for name in zoo.ARCHITECTURES
        for method in METHODS
        # TFMOT does not quantize recurrent layers.
        if (name, method) != ("gru", Method.QAT)
    ),
]


def prepare(folder: Path) -> None:
    """Write initial weights, trained a little, and the training step of every case."""
    data, _ = load_train_test("fashion-mnist")
    for number, case in enumerate(CASES):
        tf_keras.backend.clear_session()
        tf_keras.utils.set_random_seed(number)
        model = case.build()
        warm = slice(BATCH * STEPS[-1], BATCH * (STEPS[-1] + WARM_UP))
        model.fit(
            [data.images[warm]], data.labels[warm], batch_size=BATCH, optimizer="adam",
            learning_rate=1e-3,
        )  # fmt: skip
        weights = model.get_weights()
        masks = magnitude_masks(model.manifest, weights, case.sparsity)
        np.savez(folder / f"{number}-start.npz", *mask_weights(weights, masks))
        step = export_training_step(model, TrainingStepOptions(BATCH))
        (folder / f"{number}.step").write_bytes(step)
        print("prepared", case, flush=True)


def train(folder: Path, runner: str) -> None:
    """Write weights and loss of every case after each number of steps, with one runner."""
    threads = 2 if runner == "threads" else 1
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    data, _ = load_train_test("fashion-mnist")
    for number, case in enumerate(CASES):
        tf_keras.backend.clear_session()
        model = case.build()
        start = _load(folder / f"{number}-start.npz")
        for repeat, steps in itertools.product(range(REPEATS), STEPS):
            first = len(data.images) - (repeat + 1) * STEPS[-1] * BATCH
            chosen = np.arange(first, first + steps * BATCH)
            if runner == "order":
                chosen = chosen[_turned(len(chosen))]
            part = data.take(chosen)
            if runner == "litert":
                step = (folder / f"{number}.step").read_bytes()
                weights, loss = _litert(model, step, part, start, case.sparsity)
            else:
                model.set_weights(start)
                loss = model.fit(
                    part.inputs, part.targets, batch_size=BATCH, sparsity=case.sparsity, seed=_SEED
                )
                weights = model.get_weights()
            path = folder / f"{number}-{runner}-{steps}-{repeat}.npz"
            np.savez(path, *weights, np.array(loss))
        print(runner, case, flush=True)


_SEED = round_seed(0, 1, "client")


def _turned(count: int) -> Array:
    """Return indices that reverse the examples of every batch, in training's order."""
    order = epoch_order(count, 0, _SEED)
    indices = np.empty(count, np.int64)
    indices[order] = order.reshape(-1, BATCH)[:, ::-1].reshape(-1)
    return indices


def _litert(
    model: FederatedModel,
    step: bytes,
    data: Dataset,
    start: list[Array],
    sparsity: float,
) -> tuple[list[Array], float]:
    plan = pb.Plan(
        training=pb.Training(epochs=1, batch_size=BATCH, learning_rate=0.01),
        optimization=pb.Optimization(method=model.optimization.method),
    )
    examples = Examples(model.task, data)
    trainer = LitertTrainer(plan, model.manifest, step, examples, client="client")
    trained = trainer.train(start, pb.Train(round=1, sparsity=sparsity))
    return trained.weights, trained.loss


def _load(path: Path) -> list[Array]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


def compare(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield for every case the medians of the largest differences from Keras with one thread."""
    for number, case in enumerate(CASES):
        row: dict[str, Any] = {"kind": case.kind, "name": case.name, "method": case.method.value}
        for steps in STEPS:
            gaps: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
            losses: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
            for repeat in range(REPEATS):
                ends = {r: _load(folder / f"{number}-{r}-{steps}-{repeat}.npz") for r in RUNNERS}
                for runner, (*weights, loss) in ends.items():
                    pairs = zip(weights, ends["keras"][:-1], strict=True)
                    gaps[runner].append(max(float(np.abs(a - b).max()) for a, b in pairs))
                    losses[runner].append(float(loss))
            del gaps["keras"]
            row[f"after {steps}"] = {r: statistics.median(g) for r, g in gaps.items()}
            row[f"all after {steps}"] = gaps
            row[f"loss of {steps}"] = {r: statistics.mean(found) for r, found in losses.items()}
        yield row


def main() -> None:
    """Measure every case and write the result."""
    with tempfile.TemporaryDirectory() as scratch:
        for what in ("prepare", *RUNNERS):
            own = {"TF_ENABLE_ONEDNN_OPTS": "0"} if what == "kernels" else {}
            command = [sys.executable, __file__, what, scratch]
            subprocess.run(command, check=True, env={**os.environ, **own})
        measured = {
            "batch_size": BATCH, "warm_up": WARM_UP, "learning_rate": 0.01, "sparsity": SPARSITY,
            "repeats": REPEATS, "machine": machine(), "cases": list(compare(Path(scratch))),
        }  # fmt: skip
    RESULT.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:]:
        what, scratch = sys.argv[1:]
        prepare(Path(scratch)) if what == "prepare" else train(Path(scratch), what)
    else:
        main()
