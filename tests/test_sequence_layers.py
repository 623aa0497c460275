"""The training step of layers for sequences and text against tf_keras, as in test_exporter.

Data are images here too; a Reshape makes sequences of them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_model_optimization")
pytest.importorskip("ai_edge_litert")

import tf_keras
from ai_edge_litert.interpreter import Interpreter
from test_exporter import CLASSES, batch, branches, check, exported, train_both

from featherfed.compression.arrays import Array
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.exporter.training_step import TrainingStepOptions, export_training_step
from featherfed.models.optimized import FederatedModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.step_file import split_step

layers = tf_keras.layers
SHAPE = (9, 8, 2)
LINE = layers.Reshape((18, -1))


@pytest.mark.slow  # conversions
def test_kernels_over_sequences() -> None:
    line = functools.partial(layers.Conv1D, 3)
    back = functools.partial(layers.Conv1DTranspose, 3)
    check({
        "causal": [LINE, line(3, padding="causal")],
        "causal_dilated": [LINE, line(2, padding="causal", dilation_rate=3, activation="relu")],
        "causal_strided": [LINE, line(3, padding="causal", strides=2)],
        "dilated": [LINE, line(3, padding="same", dilation_rate=2)],
        "groups": [LINE, layers.Conv1D(4, 3, groups=2)],
        "depth": [LINE, layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2)],
        "separable": [LINE, layers.SeparableConv1D(3, 3, padding="causal")],
        "back": [LINE, back(3, activation="tanh")],
        "back_strided": [LINE, back(3, strides=2, padding="same")],
        "back_wide": [LINE, back(2, strides=3, use_bias=False)],
        "back_more": [LINE, back(3, strides=2, output_padding=1)],
        "back_dilated": [LINE, back(3, dilation_rate=2)],
    })  # fmt: skip


@pytest.mark.slow  # conversions
def test_transposed_convolutions_of_images() -> None:
    back = functools.partial(layers.Conv2DTranspose, 3)
    check({
        "valid": [back(3)],
        "same": [back((3, 2), padding="same", activation="relu")],
        "strided": [back(3, strides=2, padding="same")],
        "strided_one_way": [back(2, strides=(1, 3))],
        "gaps": [back(2, strides=3, use_bias=False)],
        "more": [back(3, strides=2, padding="same", output_padding=0)],
        "dilated": [back(2, dilation_rate=2)],
        "dilated_same": [back(3, dilation_rate=2, padding="same")],
    }, (5, 4, 2))  # fmt: skip


@pytest.mark.slow  # conversions
def test_pools_of_sequences() -> None:
    most, mean = layers.MaxPooling1D, layers.AveragePooling1D
    check({
        "max": [LINE, most()],
        "max_overlapping": [LINE, most(3, strides=2)],
        "max_same": [LINE, most(4, strides=3, padding="same")],
        "mean": [LINE, mean()],
        "mean_same": [LINE, mean(3, strides=2, padding="same")],
        "all_mean": [LINE, layers.GlobalAveragePooling1D()],
        "all_mean_kept": [LINE, layers.GlobalAveragePooling1D(keepdims=True)],
        "all_max": [LINE, layers.GlobalMaxPooling1D()],
        "all_max_kept": [LINE, layers.GlobalMaxPooling1D(keepdims=True)],
    })  # fmt: skip


@pytest.mark.slow  # conversions
def test_larger_smaller_and_moved() -> None:
    # A Dense over the last axis and a tanh behind each, so that places and gradients differ.
    check({
        "up1": [LINE, layers.UpSampling1D(3), layers.Conv1D(2, 2)],
        "up2": [layers.UpSampling2D((2, 3)), layers.Conv2D(2, 2)],
        "up2_blend": [layers.UpSampling2D((2, 3), interpolation="bilinear"), layers.Conv2D(2, 2)],
        "pad1": [LINE, layers.ZeroPadding1D((1, 3))],
        "pad2": [layers.ZeroPadding2D(((1, 0), (2, 3)))],
        "crop1": [LINE, layers.Cropping1D((2, 1))],
        "crop2": [layers.Cropping2D(((1, 0), (2, 1)))],
        "turned": [LINE, layers.Permute((2, 1)), layers.Dense(3)],
        "again": [layers.Flatten(), layers.Dense(4), layers.RepeatVector(3), layers.LSTM(2)],
    }, (6, 6, 4))  # fmt: skip


@pytest.mark.slow  # conversions
def test_sums_and_products_of_several_shapes() -> None:
    image = tf_keras.Input(SHAPE)
    wide = layers.Conv2D(3, 1, name="wide")(image)
    mean = layers.GlobalAveragePooling2D(keepdims=True)(wide)
    gate = layers.Dense(3, activation="sigmoid", name="gate")(mean)
    narrow = layers.Conv2D(1, 1, name="narrow")(image)
    vector = layers.Dense(3, name="vector")(layers.Flatten()(narrow))
    merged = [
        layers.Multiply()([wide, gate]),
        layers.Add()([wide, narrow, gate]),
        layers.Add()([wide, vector]),
        layers.Subtract()([gate, wide]),
        layers.Average()([narrow, wide]),
    ]
    ends = [layers.Flatten()(x) for x in merged]
    out = layers.Dense(CLASSES, activation="softmax")(layers.Concatenate()(ends))
    train_both(FederatedModel(tf_keras.Model(image, out)), *batch(SHAPE)).check()


# ---- layers around layers ----


@pytest.mark.slow  # conversions
def test_wrappers() -> None:
    rows, both, each = layers.Reshape((3, 8)), layers.Bidirectional, layers.TimeDistributed
    check({
        "concat": [rows, both(layers.GRU(2))],
        "sequences": [rows, both(layers.LSTM(2, return_sequences=True), merge_mode="sum")],
        "product": [rows, both(layers.SimpleRNN(2), merge_mode="mul")],
        "mean": [rows, both(layers.GRU(2, kernel_regularizer="l2"), merge_mode="ave")],
        "own": [rows, both(layers.GRU(2), backward_layer=layers.GRU(3, go_backwards=True))],
        "dense": [rows, each(layers.Dense(2, activation="tanh", kernel_regularizer="l2"))],
        "images": [each(layers.Conv1D(2, 2)), each(layers.Flatten())],
        "norm": [rows, each(layers.BatchNormalization(momentum=0.5))],
    }, (3, 2, 1), epochs=2)  # fmt: skip


def test_a_short_batch_of_normalized_steps() -> None:
    """The examples that fill a batch up must not count in any of their steps."""
    stack = [layers.Reshape((3, 8)), layers.TimeDistributed(layers.BatchNormalization())]
    train_both(branches({"norm": stack}, (3, 2, 1)), *batch((3, 2, 1), 5)).check()


# ---- masks ----


def padded_batch(shape: tuple[int, ...], count: int = 8) -> tuple[Array, Array]:
    """Return images of which rows at the end, and one in the midst, are zero."""
    images, labels = batch(shape, count)
    images = np.maximum(images, 1)
    for k, image in enumerate(images):
        image[1 + k % shape[0] :] = 0
    images[0, 1:] = 3
    images[0, 2] = 0
    return images, labels


def rows_of(shape: tuple[int, ...]) -> list[Any]:
    return [layers.Reshape((shape[0], -1)), layers.Masking()]


def check_masked(stacks: dict[str, Any], shape: tuple[int, ...] = (5, 3, 1), **how: Any) -> None:
    stacks = {name: [*rows_of(shape), *stack] for name, stack in stacks.items()}
    # Without bias, what is zero stays zero.
    model = branches(
        stacks, shape, lambda name: layers.Conv2D(4, 1, use_bias=False, name=f"{name}_before")
    )
    train_both(model, *padded_batch(shape), **how).check()


@pytest.mark.slow  # conversions
def test_masked_recurrent_layers() -> None:
    both = layers.Bidirectional
    check_masked({
        "gru": [layers.GRU(2)],
        "gru_all": [layers.GRU(2, return_sequences=True), layers.LSTM(2)],
        "lstm_back": [layers.LSTM(2, go_backwards=True, return_sequences=True)],
        "simple": [layers.SimpleRNN(2)],
        "both": [both(layers.GRU(2, return_sequences=True)), both(layers.LSTM(2))],
        "between": [layers.Dropout(0.0), layers.Dense(3, activation="tanh"), layers.GRU(2)],
        "ended": [layers.Conv1D(3, 2, padding="same"), layers.GRU(2)],
        "distributed": [layers.TimeDistributed(layers.Dense(3)), layers.GRU(2)],
    })  # fmt: skip


@pytest.mark.slow
def test_masked_pools_attention_and_joints() -> None:
    shape = (5, 3, 1)
    image = tf_keras.Input(shape)
    x = layers.Conv2D(4, 1, use_bias=False, name="before")(image)
    for layer in rows_of(shape):
        x = layer(x)
    attended = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    joined = layers.LayerNormalization(name="norm")(layers.Add()([layers.Dense(12)(x), attended]))
    ends = [
        layers.GlobalAveragePooling1D()(x),
        layers.GlobalAveragePooling1D()(joined),
        layers.GlobalMaxPooling1D()(joined),
        layers.Flatten()(attended),
        layers.GRU(2)(layers.Concatenate()([x, joined])),
    ]
    out = layers.Dense(CLASSES, activation="softmax", name="classes")(layers.Concatenate()(ends))
    model = FederatedModel(tf_keras.Model(image, out))
    train_both(model, *padded_batch(shape)).check(still=key_biases(model))


@pytest.mark.slow  # conversions
def test_tokens_with_a_mask() -> None:
    """Codes come as pixels; 0 is padding."""
    shape = (6, 1, 1)
    image = tf_keras.Input(shape)
    codes = layers.Reshape((6,))(layers.Rescaling(255.0)(image))
    x = layers.Embedding(256, 4, mask_zero=True, name="words")(codes)
    loud = layers.Dense(4, activation="tanh", kernel_initializer="ones", name="loud")(x)
    ends = [
        layers.GlobalAveragePooling1D()(x),
        layers.Bidirectional(layers.LSTM(3))(x),
        layers.Flatten()(layers.MultiHeadAttention(1, 2)(loud, loud, use_causal_mask=True)),
    ]
    out = layers.Dense(CLASSES, activation="softmax")(layers.Concatenate()(ends))
    model = FederatedModel(tf_keras.Model(image, out))
    train_both(model, *padded_batch(shape), rate=0.5).check(still=key_biases(model))


# ---- attention ----


@pytest.mark.slow  # conversions
def test_attention() -> None:
    image = tf_keras.Input((5, 3, 1))
    x = layers.Reshape((5, 12))(layers.Conv2D(4, 1, activation="tanh", name="before")(image))
    x = layers.Rescaling(4.0)(x)
    other = layers.Conv1D(12, 2, strides=2, name="other")(x)
    heads = layers.MultiHeadAttention
    sharp = layers.Rescaling(1000.0)(layers.Dense(5, trainable=False, name="allowed")(x))
    allowed = layers.Activation("hard_sigmoid")(sharp)
    narrow = layers.Dense(3, use_bias=False, name="narrow")(other)
    seen = [
        heads(2, 3, name="self")(x, x),
        heads(3, 2, value_dim=4, use_bias=False, name="cross")(x, other),
        heads(1, 5, output_shape=7, name="key")(x, other, key=narrow),
        heads(2, 3, name="causal")(x, x, use_causal_mask=True),
        heads(2, 3, name="given", kernel_regularizer="l2")(x, x, attention_mask=allowed),
    ]
    ends = [layers.Flatten()(layers.LayerNormalization()(y)) for y in seen]
    out = layers.Dense(CLASSES, activation="softmax", name="classes")(layers.Concatenate()(ends))
    model = FederatedModel(tf_keras.Model(image, out))
    train_both(model, *batch((5, 3, 1))).check(still=key_biases(model))


def key_biases(model: FederatedModel) -> list[str]:
    """Return what has no gradient: a bias of the keys adds the same to all scores of a query."""
    return [spec.name for spec in model.manifest if spec.name.endswith("/key/bias")]


@pytest.mark.slow  # conversions
def test_a_model_called_with_training_false_is_frozen() -> None:
    image = tf_keras.Input(SHAPE)
    base = tf_keras.Sequential(
        [layers.InputLayer(SHAPE), layers.Conv2D(3, 2), layers.BatchNormalization(),
         layers.Dropout(0.5)], name="base",
    )  # fmt: skip
    out = layers.Dense(CLASSES, activation="softmax")(layers.Flatten()(base(image, training=False)))
    train_both(FederatedModel(tf_keras.Model(image, out)), *batch(SHAPE)).check()


# ---- noise ----


def made_of_ones(layer: Any, shape: tuple[int, ...], rounds: int = 2) -> list[Array]:
    """Return what a layer made of sequences of ones in some rounds, [T, C] each.

    From zero kernels, a step of rate 1 of two classes shows it.
    """
    stack = [layers.InputLayer((*shape, 1)), layers.Reshape(shape), layer, layers.Flatten(),
             layers.Dense(2, activation="softmax", use_bias=False)]  # fmt: skip
    model = FederatedModel(tf_keras.Sequential(stack))
    step = exported(model, 1, "sgd")
    plan = pb.Plan(
        training=pb.Training(epochs=1, batch_size=1, learning_rate=1.0),
        optimization=pb.Optimization(method="none"),
    )
    ones = Dataset((np.full((1, *shape, 1), 255, np.uint8),), np.zeros(1, np.int64))
    examples = Examples(model.task, ones)
    trainer = LitertTrainer(plan, model.manifest, step, examples, client="c", trusted=True)
    zeros = [np.zeros(spec.shape, np.float32) for spec in model.manifest]
    return [
        trainer.train(zeros, pb.Train(round=n)).weights[0][:, 0].reshape(shape) / 0.5
        for n in range(rounds)
    ]


@pytest.mark.slow  # conversions
def test_noise_has_its_mean_and_spread() -> None:
    for layer, spread in ((layers.GaussianNoise(0.2), 0.2), (layers.GaussianDropout(0.1), 1 / 3)):
        first, second = made_of_ones(layer, (20, 500))
        assert not np.array_equal(first, second)
        assert first.mean() == pytest.approx(1.0, abs=0.02)
        assert first.std() == pytest.approx(spread, rel=0.05)
        assert abs(np.mean((first - 1) ** 3)) < 0.1 * spread**3
        assert np.mean(np.abs(first - 1) < spread) == pytest.approx(0.683, abs=0.02)


def test_dropout_of_sequences() -> None:
    for values in made_of_ones(layers.SpatialDropout1D(0.3), (6, 1500)):
        assert np.unique(values) == pytest.approx([0.0, 1 / 0.7], abs=1e-5)
        assert (values == values[:1]).all()
        assert values.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow  # conversions
def test_dropout_of_recurrent_layers_is_of_their_inputs() -> None:
    line = layers.Reshape((4, -1))
    stacks = {"each": [line, layers.GRU(1, dropout=0.5)],
              "once": [line, layers.GRU(1, dropout=0.5, unroll=True)]}  # fmt: skip
    step = export_training_step(branches(stacks, (4, 1, 1)), TrainingStepOptions(2))
    interpreter = Interpreter(model_content=split_step(step).train)
    found = interpreter.get_signature_runner("train").get_input_details()
    shapes = {tuple(found[f"noise_{n}"]["shape"]) for n in (0, 1)}
    assert shapes == {(2, 4, 4), (2, 1, 4)}
