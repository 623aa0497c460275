"""The exported training step against tf_keras: the same weights, batch and options, one step each.

Layers are gathered into branches of few models, since every conversion takes a second or more; a
failure names the tensors, and those name the branch.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")
pytest.importorskip("ai_edge_litert")

import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from support.tasks import TASKS, random_data

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Role
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.order import round_seed
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.edge_client.trainer import TrainingResult
from featherfed.exporter.activations import ACTIVATIONS
from featherfed.exporter.errors import ExportError
from featherfed.exporter.losses import LOSSES
from featherfed.exporter.optimizers import OPTIMIZERS
from featherfed.exporter.quantization import fake_quantize
from featherfed.exporter.training_step import TrainingStepOptions, export_training_step
from featherfed.models import zoo
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Loss, Method, Optimizer
from featherfed.proto.step_file import split_step
from featherfed.tasks.scoring import Scoring
from featherfed.tasks.task import image_task

layers = tf_keras.layers
SHAPE = (9, 8, 2)
CLASSES = 5
BATCH = 8
TOLERANCE = 1e-6
LEVEL = 5e-4
"""By so much weights differ after a step if some activations went to another level of int8."""
Stack = Sequence[Any]


# --- one step twice


@dataclass(frozen=True)
class Both:
    """What LiteRT and Keras made of the same start."""

    start: list[Array]
    litert: TrainingResult
    keras: TrainingResult
    names: list[str]
    trainable: list[bool]

    def gaps(self) -> dict[str, float]:
        """Return by how much LiteRT is off: weights and loss by name."""
        pairs = zip(self.names, self.litert.weights, self.keras.weights, strict=True)
        gaps = {name: float(np.abs(a - b).max()) for name, a, b in pairs}
        loss = abs(self.litert.loss - self.keras.loss) / max(1.0, abs(self.keras.loss))
        return {**gaps, "loss": loss}

    def check(self, tolerance: float = TOLERANCE, still: Sequence[str] = ()) -> None:
        """Assert that nothing is off, and that all trainable tensors but `still` have moved."""
        assert {name: gap for name, gap in self.gaps().items() if not gap <= tolerance} == {}
        # A step that moves nothing is right for no reason.
        assert self.unmoved(tolerance) == set(still)

    def unmoved(self, tolerance: float = TOLERANCE) -> set[str]:
        """Return the names of the trainable tensors that training has hardly changed."""
        moves = {
            name: float(np.abs(before - after).max())
            for name, before, after, trainable in zip(
                self.names, self.start, self.keras.weights, self.trainable, strict=True
            )
            if trainable
        }
        return {name for name, move in moves.items() if move < 10 * tolerance}


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
def exported(model: FederatedModel, batch_size: int, optimizer: str) -> bytes:
    content = export_training_step(model, TrainingStepOptions(batch_size, optimizer))
    for part in split_step(content):
        assert_builtin(part)
    return content


def assert_builtin(content: bytes) -> None:
    model = schema.Model.GetRootAs(content)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    codes = [model.OperatorCodes(k) for k in range(model.OperatorCodesLength())]
    used = {names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes}
    assert used
    assert not used & {"CUSTOM", "DELEGATE"}
    assert not any(code.CustomCode() for code in codes)


def train_both(
    model: FederatedModel,
    images: Array,
    labels: Array,
    *,
    start: list[Array] | None = None,
    **options: Any,
) -> Both:
    return train_on(model, Dataset((images,), labels), start=start, **options)


def train_on(
    model: FederatedModel,
    data: Dataset,
    *,
    start: list[Array] | None = None,
    batch_size: int = BATCH,
    rate: float = 0.1,
    optimizer: str = "sgd",
    epochs: int = 1,
    sparsity: float = 0.0,
) -> Both:
    start = start_of(model) if start is None else start
    start = mask_weights(start, magnitude_masks(model.manifest, start, sparsity))
    plan = pb.Plan(
        training=pb.Training(
            epochs=epochs, batch_size=batch_size, learning_rate=rate, optimizer=optimizer
        ),
        optimization=pb.Optimization(method=model.optimization.method),
    )
    step = exported(model, batch_size, optimizer)
    examples = Examples(model.task, data, held_out=data)
    trainer = LitertTrainer(plan, model.manifest, step, examples, client="c", trusted=True)
    litert = trainer.train(start, pb.Train(round=1, sparsity=sparsity))
    model.set_weights(start)
    seed = round_seed(plan.seed, 1, "c")
    result = model.fit(
        data.inputs, data.targets, epochs=epochs, batch_size=batch_size, learning_rate=rate,
        optimizer=optimizer, sparsity=sparsity, seed=seed,
    )  # fmt: skip
    check_answers(model, trainer, data)
    return Both(
        start,
        litert,
        TrainingResult(model.get_weights(), result),
        [spec.name for spec in model.manifest],
        [spec.role is Role.TRAINABLE for spec in model.manifest],
    )


def check_answers(model: FederatedModel, trainer: LitertTrainer, data: Dataset) -> None:
    """Assert that LiteRT's evaluation of the model's weights is Keras'."""
    scoring = Scoring(model.task)
    sums = trainer.evaluate(model.get_weights())
    assert sums is not None
    expected = model.evaluate(data.inputs, data.targets)
    found = scoring.scores(sums)
    if not model.optimization.method.quantizes:  # a level further is another answer
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def branches(
    stacks: dict[str, Stack],
    shape: tuple[int, ...] = SHAPE,
    before: Callable[[str], Any] | None = None,
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


@pytest.mark.slow  # converts two graphs for each
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


# --- a convolution under a max pool is one operation


@pytest.mark.slow  # converts two graphs for each
def test_pooled_convolutions() -> None:
    conv = functools.partial(layers.Conv2D, 3, activation="relu")
    check({
        "odd": [conv(2), layers.MaxPooling2D()],
        "cropped": [conv(3, strides=(2, 1), padding="same"), layers.MaxPooling2D()],
        "thirds": [conv(3), layers.MaxPooling2D(3)],
        "oblong": [conv(3, use_bias=False), layers.MaxPooling2D((2, 1))],
        "same": [conv(3), layers.MaxPooling2D((7, 2), padding="same")],
        "overlapping": [conv(3), layers.MaxPooling2D(3, strides=2)],
        "dilated": [conv(2, dilation_rate=2), layers.MaxPooling2D()],
        "first": [layers.Rescaling(2.0), conv(3), layers.MaxPooling2D()],
    })  # fmt: skip


def test_a_pooled_convolution_that_is_used_elsewhere_too() -> None:
    image = tf_keras.Input(SHAPE)
    seen = layers.Conv2D(3, 3, activation="relu", name="seen")(image)
    pooled = layers.MaxPooling2D()(seen)
    ends = [layers.Flatten()(x) for x in (pooled, seen, layers.MaxPooling2D(3)(seen))]
    out = layers.Dense(CLASSES, activation="softmax")(layers.Concatenate()(ends))
    train_both(FederatedModel(tf_keras.Model(image, out)), *batch(SHAPE)).check()


def test_the_first_of_equals_gets_the_gradient() -> None:
    """Few different integers, so that most windows have several largest values."""
    pools = {
        "tiled": layers.MaxPooling2D(),
        "thirds": layers.MaxPooling2D(3),
        "overlapping": layers.MaxPooling2D(3, strides=2, padding="same"),
        "all": layers.GlobalMaxPooling2D(),
    }
    stacks: dict[str, Stack] = {name: [pool] for name, pool in pools.items()}
    stacks["fused"] = [layers.Conv2D(3, 2, activation="relu"), layers.MaxPooling2D()]
    model = branches(
        stacks, before=lambda name: layers.Conv2D(3, 1, padding="same", name=f"{name}_before")
    )
    images, labels = batch(SHAPE)
    start = start_of(model)
    for k, spec in enumerate(model.manifest):
        if "classes" not in spec.name:
            start[k] = np.rint(start[k] * 2).astype(np.float32)
    start = [w + np.float32("before" in s.name) for w, s in zip(start, model.manifest, strict=True)]
    train_both(model, images // 128 * 255, labels, start=start, rate=0.01).check()


# --- normalisation, pooling and shapes


def test_normalizations() -> None:
    norm, layer_norm = layers.BatchNormalization, layers.LayerNormalization
    check({
        "usual": [norm()],
        "quick": [norm(momentum=0.8, epsilon=1e-5)],
        "unscaled": [norm(scale=False)],
        "uncentred": [norm(center=False)],
        "plain": [norm(scale=False, center=False)],
        "frozen": [norm(trainable=False)],
        "vector": [layers.Flatten(), layers.Dense(4, use_bias=False), norm(momentum=0.9)],
        "sequence": [layers.Reshape((9, 32)), layers.Dense(4, use_bias=False), norm()],
        "layer": [layer_norm()],
        "layer_image": [layer_norm(axis=[1, 2, 3], epsilon=1e-5)],
        "layer_plain": [layers.Flatten(), layers.Dense(4), layer_norm(scale=False, center=False)],
    })  # fmt: skip


@pytest.mark.slow  # converts two graphs for each
def test_pools() -> None:
    most, mean = layers.MaxPooling2D, layers.AveragePooling2D
    check({
        "max": [most()],
        "max_overlapping": [most(3, strides=2)],
        "max_same": [most(3, strides=2, padding="same")],
        "max_sliding": [most((2, 3), strides=1, padding="same")],
        "max_sparse": [most(2, strides=3)],
        "mean": [mean()],
        "mean_overlapping": [mean(3, strides=(2, 1))],
        "mean_same": [mean(3, strides=2, padding="same")],
        "mean_sparse": [mean(2, strides=3)],
        "all_mean": [layers.GlobalAveragePooling2D()],
        "all_mean_kept": [layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(2, 1)],
        "all_max": [layers.GlobalMaxPooling2D()],
        "all_max_kept": [layers.GlobalMaxPooling2D(keepdims=True), layers.Conv2D(2, 1)],
    })  # fmt: skip


def test_shapes_and_sums() -> None:
    image = tf_keras.Input(SHAPE)
    same = functools.partial(layers.Conv2D, 2, 1)
    a, b, c = (same(name=name)(image) for name in "abc")
    merged = [
        layers.Add()([a, b]),
        layers.Add()([a, b, c]),
        layers.Subtract()([a, b]),
        layers.Multiply()([a, b, c]),
        layers.Average()([a, b, c]),
        layers.Concatenate(axis=1)([a, b]),
        layers.ZeroPadding2D(((1, 0), (2, 3)))(c),
        layers.Permute((3, 1, 2))(c),
        layers.Permute((2, 1))(layers.Reshape((16, -1))(b)),
        layers.Rescaling(2.0, offset=-1.0)(a),
    ]
    # Something that tells rows from columns behind every one of them.
    ends = [layers.Flatten()(x) for x in merged]
    out = layers.Dense(CLASSES, activation="softmax")(layers.Concatenate()(ends))
    train_both(FederatedModel(tf_keras.Model(image, out)), *batch(SHAPE)).check()


def test_models_in_models_and_layers_used_twice() -> None:
    image = tf_keras.Input(SHAPE)
    inside = tf_keras.Input((9, 8, 3))
    side = layers.Conv2D(3, 3, padding="same", name="side")(inside)
    inner = tf_keras.Model(inside, layers.Add()([inside, side]), name="inner")
    tail = tf_keras.Sequential(
        [layers.InputLayer((9, 8, 3)), layers.Conv2D(2, 3, activation="relu"), layers.MaxPool2D()],
        name="tail",
    )
    shared = layers.Conv2D(
        3, 1, activation="tanh", padding="same", kernel_regularizer="l2", name="shared"
    )
    norm = layers.BatchNormalization(momentum=0.5, name="norm")
    first = layers.Conv2D(3, 1, name="first")(image)
    second = norm(shared(norm(shared(first))))
    ends = [layers.Flatten()(tail(inner(x))) for x in (first, second)]
    out = layers.Dense(CLASSES, activation="softmax", name="classes")(layers.Concatenate()(ends))
    both = train_both(FederatedModel(tf_keras.Model(image, out)), *batch(SHAPE))
    both.check(4 * TOLERANCE)  # gradients of layers used twice are sums: more float noise


# --- activations


@pytest.mark.slow  # converts two graphs for each
def test_activations_by_name() -> None:
    check(
        {
            name: [
                layers.Flatten(),
                layers.Dense(6, activation=name),
                layers.Activation(name),
            ]
            for name in ACTIVATIONS
        },
        (3, 3, 1),
    )


def test_activation_layers() -> None:
    dense = functools.partial(layers.Dense, 8)
    check(
        {
            name: [layers.Flatten(), dense(), layers.Rescaling(3.0), activation]
            for name, activation in {
                "relu": layers.ReLU(),
                "relu_top": layers.ReLU(2.0),
                "relu6": layers.ReLU(6.0),
                "relu_leaky": layers.ReLU(negative_slope=0.2),
                "relu_threshold": layers.ReLU(threshold=0.5),
                "relu_all": layers.ReLU(1.5, negative_slope=0.1, threshold=0.3),
                "leaky": layers.LeakyReLU(0.1),
                "elu": layers.ELU(0.7),
                "softmax": layers.Softmax(),
            }.items()
        },
        (3, 3, 1),
    )


# --- sequences


@pytest.mark.slow
def test_recurrent_layers() -> None:
    rows = layers.Reshape((3, 8))
    gru, lstm, simple = (
        functools.partial(kind, unroll=True) for kind in (layers.GRU, layers.LSTM, layers.SimpleRNN)
    )
    check(
        {
            "gru": [rows, layers.GRU(3)],
            "gru_before": [rows, gru(3, reset_after=False)],
            "gru_backwards": [rows, gru(3, go_backwards=True, return_sequences=True)],
            "gru_plain": [rows, gru(3, use_bias=False, recurrent_activation="hard_sigmoid")],
            "lstm": [rows, lstm(3, return_sequences=True)],
            "simple": [rows, simple(3, activation="relu", use_bias=False, go_backwards=True)],
        },
        (3, 2, 1),
    )


def test_embeddings() -> None:
    """All 256 codes: what becomes of a pixel between 0 and 1 must be the same integer again."""
    model = FederatedModel(
        tf_keras.Sequential(
            [
                layers.InputLayer((8, 8, 1)),
                layers.Rescaling(255.0),
                layers.Reshape((64,)),
                layers.Embedding(256, 3, embeddings_regularizer="l2", name="codes"),
                layers.Flatten(),
                layers.Dense(CLASSES, activation="softmax"),
            ]
        )
    )
    images = np.arange(512, dtype=np.uint8).reshape(8, 8, 8, 1)
    train_both(model, images, np.arange(8) % CLASSES, rate=1.0).check()


# --- regularizers and frozen layers


@pytest.mark.slow  # converts two graphs for each
def test_regularizers_and_frozen_layers() -> None:
    kinds = tf_keras.regularizers
    dense = functools.partial(layers.Dense, 4)
    check(
        {
            "one": [layers.Flatten(), dense(kernel_regularizer=kinds.l1(0.01))],
            "two": [layers.Flatten(), dense(bias_regularizer=kinds.l2(0.1))],
            "both": [
                layers.Flatten(),
                dense(kernel_regularizer=kinds.l1_l2(0.01, 0.02), bias_regularizer=kinds.l1(0.1)),
            ],
            "no_bias": [layers.Flatten(), dense(use_bias=False, bias_regularizer="l2")],
            "frozen": [layers.Conv2D(3, 2, trainable=False, kernel_regularizer="l2")],
            "depth": [layers.DepthwiseConv2D(2, depthwise_regularizer=kinds.l2(0.1))],
            "separable": [layers.SeparableConv2D(
                2, 2, depthwise_regularizer=kinds.l2(0.1), pointwise_regularizer=kinds.l1(0.1)
            )],
            "norm": [layers.BatchNormalization(
                gamma_regularizer=kinds.l2(0.1), beta_regularizer=kinds.l1(0.1)
            )],
            "gru": [layers.Reshape((4, -1)), layers.GRU(
                2, kernel_regularizer=kinds.l2(0.1), recurrent_regularizer=kinds.l1(0.1),
                bias_regularizer=kinds.l2(0.1),
            )],
        },
        (4, 3, 1),
    )  # fmt: skip


# --- losses and optimizers


@functools.cache
def small(output: str = "softmax", loss: Loss | None = None) -> FederatedModel:
    """A dense layer with its own or a layer's activation."""
    if output == "Softmax":
        stack = [layers.Dense(CLASSES), layers.Softmax()]
    elif output == "moved":
        stack = [layers.Dense(CLASSES, activation="softmax"), layers.Rescaling(0.8, 0.1)]
    else:
        stack = [layers.Dense(CLASSES, activation=output)]
    return FederatedModel(
        tf_keras.Sequential([layers.InputLayer((4, 3, 1)), layers.Flatten(), *stack]),
        task=image_task((4, 3, 1), [str(number) for number in range(CLASSES)], loss),
    )


@pytest.mark.parametrize(
    ("loss", "output"),
    [
        ("sparse_categorical_crossentropy", "Softmax"),
        pytest.param("sparse_categorical_crossentropy", "sigmoid", marks=pytest.mark.slow),
        ("sparse_categorical_crossentropy", "moved"),
        ("categorical_crossentropy", "softmax"),
        pytest.param("categorical_crossentropy", "sigmoid", marks=pytest.mark.slow),
        pytest.param("categorical_crossentropy", "softplus", marks=pytest.mark.slow),
        ("binary_crossentropy", "Softmax"),
        ("binary_crossentropy", "sigmoid"),
        pytest.param("binary_crossentropy", "softplus", marks=pytest.mark.slow),
        ("mean_squared_error", "softmax"),
    ],
)
def test_losses(loss: str, output: str) -> None:
    train_both(small(output, Loss(loss)), *batch((4, 3, 1))).check()


@pytest.mark.parametrize("name", TASKS)
def test_tasks(name: str) -> None:
    """Every kind of input and target trains and evaluates as with Keras."""
    build, task = TASKS[name]
    both = train_on(FederatedModel(build(), task=task), random_data(task), epochs=2)
    # The signs of absolute errors may add up to nothing for a bias.
    still = both.unmoved() if task.loss is Loss.MEAN_ABSOLUTE_ERROR else ()
    both.check(still=[name for name in still if name.endswith("bias")])


def test_it_knows_the_losses_and_optimizers_of_plans() -> None:
    assert LOSSES.keys() == set(Loss)
    assert OPTIMIZERS.keys() == set(Optimizer)


def normalized() -> FederatedModel:
    return FederatedModel(
        tf_keras.Sequential(
            [
                layers.InputLayer(SHAPE),
                layers.Conv2D(4, 3, use_bias=False, name="conv"),
                layers.BatchNormalization(momentum=0.9, name="norm"),
                layers.ReLU(),
                layers.Flatten(),
                layers.Dense(6, use_bias=False, name="hidden"),
                layers.BatchNormalization(momentum=0.9, name="hidden_norm"),
                layers.Dense(CLASSES, activation="softmax", name="classes"),
            ]
        )
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(optimizer: str) -> None:
    rate = 1e-3 if optimizer == "adam" else 0.05
    both = train_both(
        small(), *batch((4, 3, 1), 3 * BATCH), epochs=2, optimizer=optimizer, rate=rate
    )
    both.check()


@pytest.mark.parametrize("count", [BATCH + 3, 5, 1])
def test_the_last_batch_may_be_short(count: int) -> None:
    model = shared_normalized()
    # Batch normalisation of one vector gives zeros and hands no gradient on.
    still = ["conv/kernel", "norm/gamma", "norm/beta", "hidden/kernel", "hidden_norm/gamma"]
    both = train_both(model, *batch(SHAPE, count), epochs=2, rate=0.01)
    both.check(still=still if count == 1 else ())


@functools.cache
def shared_normalized() -> FederatedModel:
    return normalized()


# --- masks, dropout, quantization


@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
def test_masks_keep_their_zeros_as_tfmot_does(optimizer: str) -> None:
    model = pruned()
    rate = 1e-3 if optimizer == "adam" else 0.05
    both = train_both(model, *batch(SHAPE, 3 * BATCH), sparsity=0.6, optimizer=optimizer, rate=rate)
    both.check()
    for spec, start, weights in zip(model.manifest, both.start, both.litert.weights, strict=True):
        if spec.prunable:
            assert np.mean(start == 0) == pytest.approx(0.6, abs=0.05)
            assert np.array_equal(start == 0, weights == 0)
            assert not np.signbit(weights[weights == 0]).any()


@functools.cache
def pruned() -> FederatedModel:
    model = tf_keras.Sequential(
        [
            layers.InputLayer(SHAPE),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(),
            layers.SeparableConv2D(4, 2, name="separable"),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax", name="classes"),
        ]
    )
    return FederatedModel(model, Optimization(Method.PRUNE))


@pytest.mark.parametrize(
    "layer", [layers.Dropout(0.3), layers.SpatialDropout2D(0.3)], ids=["each", "channels"]
)
def test_dropout_keeps_its_share_and_the_mean(layer: Any) -> None:
    """From zero kernels, a step of rate 1 shows what the layer made of an image of ones."""
    shape = (3, 2, 1500)
    model = FederatedModel(
        tf_keras.Sequential(
            [
                layers.InputLayer(shape),
                layer,
                layers.Flatten(),
                layers.Dense(2, activation="softmax", use_bias=False),
            ]
        )
    )
    step = exported(model, 1, "sgd")
    plan = pb.Plan(
        training=pb.Training(epochs=1, batch_size=1, learning_rate=1.0),
        optimization=pb.Optimization(method="none"),
    )
    data = Dataset((np.full((1, *shape), 255, np.uint8),), np.zeros(1, np.int64))
    examples = Examples(model.task, data)
    trainer = LitertTrainer(plan, model.manifest, step, examples, client="c", trusted=True)
    zeros = [np.zeros(spec.shape, np.float32) for spec in model.manifest]
    seen = [
        trainer.train(zeros, pb.Train(round=number)).weights[0][:, 0].reshape(shape) / 0.5
        for number in (1, 1, 2)
    ]
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
    for values in seen:
        assert np.unique(values) == pytest.approx([0.0, 1 / 0.7], abs=1e-5)
        assert values.mean() == pytest.approx(1.0, abs=0.05)
        by_channel = (values == values[:1, :1]).all()
        assert by_channel == isinstance(layer, layers.SpatialDropout2D)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_fake_quantization_is_that_of_tensorflow(narrow: bool, per_channel: bool) -> None:
    rng = np.random.default_rng(0)
    ranges = [(-1.0, 1.0), (-6.0, 6.0), (0.0, 6.0), (-0.1, 3.7), (-5.0, 0.0), (-1e-3, 2e-3)]
    ranges += [tuple(np.sort(rng.normal(0, 3, 2)) * [1, 1]) for _ in range(20)]
    # TFMOT lets every range hold zero.
    ranges = [(min(low, 0.0), max(high, 0.0)) for low, high in ranges]
    lows, highs = np.array(ranges, np.float32).T
    width = highs - lows
    x = lows + width * rng.uniform(-0.3, 1.3, (4000, len(ranges))).astype(np.float32)
    x[:3] = lows, highs, 0 * lows
    dy = rng.normal(size=x.shape).astype(np.float32)
    how = {"num_bits": 8, "narrow_range": narrow}
    steps = 254.0 if narrow else 255.0
    groups = [slice(None)] if per_channel else [slice(k, k + 1) for k in range(len(ranges))]
    for group in groups:
        given, low, high = (tf.constant(v[..., group]) for v in (x, lows, highs))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(given)
            ours = fake_quantize(given, low, high, float(narrow), steps)
            if per_channel:
                theirs = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                    given, low, high, **how
                )
            else:
                theirs = tf.quantization.fake_quant_with_min_max_vars(given, low[0], high[0], **how)
            sums = [tf.reduce_sum(y * dy[:, group]) for y in (ours, theirs)]
        # A value between two levels may fall to either by rounding, but hardly ever does.
        off = np.abs(ours - theirs) / width[group]
        assert np.mean(off > 1e-6) <= 1e-4
        assert off.max() <= 1.01 / steps
        gradients = [tape.gradient(total, given).numpy() for total in sums]
        assert np.array_equal(*gradients)


def test_a_range_of_nothing_quantizes_to_nothing() -> None:
    nothing = fake_quantize(tf.zeros([3, 1]), tf.zeros([1]), tf.zeros([1]), 0.0, 255.0)
    assert np.array_equal(nothing, np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("name", "shape", "method", "tolerance"),
    [
        ("cnn", (8, 8, 1), Method.QAT, TOLERANCE),
        pytest.param("cnn", (8, 8, 1), Method.PRUNE_QAT, TOLERANCE, marks=pytest.mark.slow),
        # Of a million activations one may lie so near the middle of two levels that float noise
        # moves it by a whole level.
        pytest.param("cnn", (28, 28, 1), Method.QAT, LEVEL, marks=pytest.mark.slow),
        pytest.param("cnn", (28, 28, 1), Method.PRUNE_QAT, LEVEL, marks=pytest.mark.slow),
        # Batch statistics carry float noise to all activations, and some of them across a ReLU's
        # zero or to another level: in benchmarks/parity.py Keras differs from itself by 1.2e-4.
        pytest.param("mobile", (8, 8, 1), Method.QAT, LEVEL, marks=pytest.mark.slow),
    ],
)
def test_quantization_aware_steps(
    name: str, shape: tuple[int, int, int], method: Method, tolerance: float
) -> None:
    """The ranges are compared with the weights: they are variables of the model."""
    model = FederatedModel(zoo.build(name, shape, CLASSES), Optimization(method))
    both = train_both(
        model, *batch(shape, 32), start=initial_weights(model.manifest, 1), batch_size=32,
        rate=0.01, sparsity=0.5 if method.prunes else 0.0,
    )  # fmt: skip
    assert {n for n in both.names if n.endswith("_max")}
    gaps = both.gaps()
    assert {n: gap for n, gap in gaps.items() if not gap <= tolerance} == {}


# --- what cannot be done


def refused(*stack: Any, shape: tuple[int, ...] = SHAPE, method: Method = Method.NONE) -> str:
    """Return what the exporter says about a model."""
    model = tf_keras.Sequential(
        [
            layers.InputLayer(shape),
            *stack,
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    with pytest.raises(ExportError) as caught:
        export_training_step(FederatedModel(model, Optimization(method)), TrainingStepOptions(2))
    return str(caught.value)


ROWS = layers.Reshape((9, 16))


@pytest.mark.parametrize(
    ("stack", "what"),
    [
        ([layers.Reshape((3, 3, 8, 2)), layers.ConvLSTM2D(2, 2, name="odd")], "ConvLSTM2D"),
        ([layers.UpSampling2D(interpolation="area", name="odd")], "area"),
        ([ROWS, layers.MaxPooling1D(data_format="channels_first", name="odd")], "channels_first"),
        ([layers.Reshape((144, 1)), layers.UpSampling1D(7), layers.GRU(2, name="odd")], "1,008"),
        ([ROWS, layers.Bidirectional(layers.GRU(2, bias_constraint="max_norm"), name="odd")],
         "its layer 'forward_gru"),
        ([ROWS, layers.TimeDistributed(layers.BatchNormalization(axis=1, center=False,
          gamma_constraint="non_neg"), name="odd")], "gamma_constraint"),
        ([layers.TimeDistributed(tf_keras.Sequential(
          [layers.InputLayer((8, 2)), layers.Conv1D(2, 2)]), name="odd")], "a model inside"),
        ([layers.Dense(2, kernel_constraint="max_norm", name="odd")], "kernel_constraint"),
        ([ROWS, layers.GRU(2, recurrent_constraint="max_norm", name="odd")], "constraint"),
        ([layers.Conv2D(2, 2, data_format="channels_first", name="odd")], "channels_first"),
        ([layers.Dense(2, activity_regularizer="l2", name="odd")], "activity_regularizer"),
        ([layers.ActivityRegularization(0.1, name="odd")], "ActivityRegularization"),
        ([layers.Dense(2, kernel_regularizer=tf_keras.regularizers.OrthogonalRegularizer(),
                       name="odd")], "OrthogonalRegularizer"),
        ([layers.BatchNormalization(axis=1, name="odd")], "axis"),
        ([layers.LayerNormalization(axis=1, name="odd")], "axes"),
        ([layers.Softmax(axis=1, name="odd")], "axis"),
        ([layers.ThresholdedReLU(name="odd")], "ThresholdedReLU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_exported_is_named_with_a_remedy(stack: Stack, what: str) -> None:
    message = refused(*stack)
    assert message.startswith("layer 'odd'")
    assert what in message
    assert "--runtime keras" in message


def test_clusters_and_stateful_layers_are_refused() -> None:
    assert "cluster" in refused(method=Method.CLUSTER)
    image = tf_keras.Input((4, 3), batch_size=2)
    state = layers.GRU(2, stateful=True, name="odd")(image)
    model = tf_keras.Model(image, layers.Dense(2, activation="softmax")(state))
    with pytest.raises(ExportError, match=r"'odd'.*stateful"):
        export_training_step(FederatedModel(model), TrainingStepOptions(2))


# --- what was measured

NOISES = ("threads", "order", "kernels")
"""How Keras differs from itself, in benchmarks/parity.py."""
OVER = {("Conv2D, overlapping max pool", "none"), ("mlp", "qat")}


def test_the_committed_parity_is_within_keras_own_noise() -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "results" / "parity.json"
    cases = json.loads(path.read_text("utf-8"))["cases"]
    models = {(case["name"], case["method"]) for case in cases if case["kind"] == "model"}
    assert len(models) == 11
    for case in cases:
        one, hundred = case["after 1"], case["after 100"]
        noises = [max(gaps[kind] for kind in NOISES) for gaps in (one, hundred)]
        # Where Keras is further from itself than that after one step, nobody can be nearer.
        assert one["litert"] <= max(TOLERANCE, 2 * noises[0]), case
        # Five times for the two cases that are over the bound of two; nobody has found out why.
        over = (case["name"], case["method"]) in OVER
        assert hundred["litert"] <= (5 if over else 2) * noises[1], case
        losses = case["loss of 100"]
        assert losses["litert"] == pytest.approx(losses["keras"], rel=0.02), case
