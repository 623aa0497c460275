"""The exported training step against tf_keras: the same weights, batch and options, one step each.

Layers are gathered into branches of few models, since every conversion takes a second or more; a
failure names the tensors, and those name the branch.
"""

# ruff: noqa: E402
from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")
pytest.importorskip("ai_edge_litert")

import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema

from featherfed.compression.manifest import Array, Role
from featherfed.compression.masks import magnitude_masks, mask_weights
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.edge_client.session import Trained
from featherfed.exporter.activations import ACTIVATIONS
from featherfed.exporter.errors import ExportError
from featherfed.exporter.losses import LOSSES
from featherfed.exporter.optimizers import OPTIMIZERS
from featherfed.exporter.quantization import fake_quantize
from featherfed.exporter.step import Training, export_step
from featherfed.models import training, zoo
from featherfed.models.optimized import FederatedModel, Method, Optimization
from featherfed.proto import federation_pb2 as pb

layers = tf_keras.layers
SHAPE = (9, 8, 2)
CLASSES = 5
BATCH = 8
TOLERANCE = 1e-6
Stack = Sequence[Any]


# --- one step twice


@dataclass(frozen=True)
class Both:
    """What LiteRT and Keras made of the same start."""

    start: list[Array]
    litert: Trained
    keras: Trained
    names: list[str]
    trainable: list[bool]

    def gaps(self) -> dict[str, float]:
        """Return by how much LiteRT is off: weights by name, loss and accuracy."""
        pairs = zip(self.names, self.litert.weights, self.keras.weights, strict=True)
        gaps = {name: float(np.abs(a - b).max()) for name, a, b in pairs}
        loss = abs(self.litert.loss - self.keras.loss) / max(1.0, abs(self.keras.loss))
        return {**gaps, "loss": loss, "accuracy": abs(self.litert.accuracy - self.keras.accuracy)}

    def check(self, tolerance: float = TOLERANCE, still: Sequence[str] = ()) -> None:
        """Assert that nothing is off, and that all trainable tensors but `still` have moved."""
        assert {name: gap for name, gap in self.gaps().items() if not gap <= tolerance} == {}
        moves = {
            name: float(np.abs(before - after).max())
            for name, before, after, trainable in zip(
                self.names, self.start, self.keras.weights, self.trainable, strict=True
            )
            if trainable
        }
        # A step that moves nothing is right for no reason.
        assert {name for name, move in moves.items() if move < 10 * tolerance} == set(still)


def batch(shape: tuple[int, ...], count: int = BATCH, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    return images, rng.integers(0, CLASSES, count)


def start_of(model: FederatedModel, seed: int = 1) -> list[Array]:
    """Return weights of which none is zero or one, so that every one of them matters."""
    rng = np.random.default_rng(seed)
    start = []
    for spec, weights in zip(model.manifest, model.get_weights(), strict=True):
        noise = rng.normal(0, 0.1, weights.shape).astype(np.float32)
        if spec.role is Role.TRAINABLE:
            # Keras draws kernels anew in every process.
            limit = float(np.abs(weights).max())
            drawn = rng.uniform(-limit, limit, weights.shape).astype(np.float32)
            start.append(drawn if limit not in (0.0, 1.0) else weights + noise)
        else:
            start.append(weights + np.abs(noise))
    return start


@functools.cache
def exported(model: FederatedModel, batch_size: int, optimizer: str, loss: str) -> bytes:
    content = export_step(model, Training(batch_size, optimizer, loss))
    assert_builtin(content)
    return content


def assert_builtin(content: bytes) -> None:
    parsed = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    used = {names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in parsed.operatorCodes}
    assert not used & {"CUSTOM", "DELEGATE"}
    assert not any(code.customCode for code in parsed.operatorCodes)


def train_both(
    model: FederatedModel,
    images: Array,
    labels: Array,
    *,
    start: list[Array] | None = None,
    batch_size: int = BATCH,
    rate: float = 0.1,
    optimizer: str = "sgd",
    loss: str = training.LOSSES[0],
    epochs: int = 1,
    sparsity: float = 0.0,
) -> Both:
    start = start_of(model) if start is None else start
    start = mask_weights(start, magnitude_masks(model.manifest, start, sparsity))
    plan = pb.Plan(
        training=pb.Training(
            epochs=epochs, batch_size=batch_size, learning_rate=rate, optimizer=optimizer, loss=loss
        )
    )
    step = exported(model, batch_size, optimizer, loss)
    trainer = LitertTrainer(plan, model.manifest, step, images, labels, client="c")
    litert = trainer.train(start, pb.Train(round=1, sparsity=sparsity))
    model.set_weights(start)
    seed = training_seed(plan)
    result = model.fit(
        images, labels, epochs=epochs, batch_size=batch_size, learning_rate=rate,
        optimizer=optimizer, loss=loss, sparsity=sparsity, seed=seed,
    )  # fmt: skip
    return Both(
        start,
        litert,
        Trained(model.get_weights(), *result),
        [spec.name for spec in model.manifest],
        [spec.role is Role.TRAINABLE for spec in model.manifest],
    )


def training_seed(plan: pb.Plan) -> int:
    from featherfed.datasets.order import round_seed

    return round_seed(plan.seed, 1, "c")


def branches(
    stacks: dict[str, Stack], shape: tuple[int, ...] = SHAPE, before: Callable[[str], Any] | None = None
) -> FederatedModel:
    """Return a model of branches, each behind a small convolution that wants a gradient, too."""
    image = tf_keras.Input(shape, name="image")
    ends = []
    for name, stack in stacks.items():
        x = (before or _before)(name)(image)
        for number, layer in enumerate(stack):
            layer._name = f"{name}_{number}" if number else name
            x = layer(x)
        ends.append(layers.Flatten(name=f"{name}_flat")(x))
    joined = layers.Concatenate(name="joined")(ends) if len(ends) > 1 else ends[0]
    out = layers.Dense(CLASSES, activation="softmax", name="classes")(joined)
    return FederatedModel(tf_keras.Model(image, out))


def _before(name: str) -> Any:
    return layers.Conv2D(4, 1, activation="tanh", name=f"{name}_before")


def check(stacks: dict[str, Stack], shape: tuple[int, ...] = SHAPE, **how: Any) -> None:
    train_both(branches(stacks, shape), *batch(shape), **how).check()


# --- layers with kernels


def test_convolutions() -> None:
    conv = functools.partial(layers.Conv2D, 3)
    check({
        "valid": [conv(3)],
        "same": [conv((3, 2), padding="same")],
        "strided": [conv(3, strides=2)],
        "strided_same": [conv(3, strides=2, padding="same")],
        "strided_one_way": [conv(3, strides=(2, 1), padding="same")],
        "gaps": [conv(2, strides=3)],
        "dilated": [conv(3, dilation_rate=2)],
        "dilated_same": [conv((3, 2), dilation_rate=(2, 3), padding="same")],
        "point": [conv(1)],
        "point_strided": [conv(1, strides=2, padding="same")],
        "no_bias": [conv(3, use_bias=False, activation="relu")],
        "groups": [layers.Conv2D(6, 3, groups=2, strides=2, padding="same")],
    })  # fmt: skip


def test_other_layers_with_kernels() -> None:
    depth, sequence = layers.DepthwiseConv2D, layers.Reshape((9, 32))
    check({
        "depth": [depth(3)],
        "depth_strided": [depth(3, strides=2, padding="same", activation="relu")],
        "depth_twice": [depth((3, 2), depth_multiplier=2, use_bias=False)],
        "depth_dilated": [depth(3, dilation_rate=2, padding="same")],
        "separable": [layers.SeparableConv2D(3, 3, strides=2, depth_multiplier=2)],
        "separable_same": [layers.SeparableConv2D(3, 3, padding="same", use_bias=False)],
        "line": [sequence, layers.Conv1D(3, 3, activation="relu")],
        "line_same": [layers.Reshape((18, 16)), layers.Conv1D(2, 3, strides=2, padding="same")],
        "line_dilated": [layers.Reshape((18, 16)), layers.Conv1D(2, 3, dilation_rate=2)],
        "dense": [layers.Flatten(), layers.Dense(4, activation="tanh"), layers.Dense(3)],
        "dense_on_sequence": [layers.Reshape((9, 32)), layers.Dense(4, use_bias=False)],
        "dense_on_image": [layers.Dense(3)],
    })  # fmt: skip
