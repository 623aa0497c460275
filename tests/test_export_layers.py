"""The TFLite files of models with recurrent layers, masks and attention: their four kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_model_optimization")
pytest.importorskip("ai_edge_litert")

import tf_keras
from ai_edge_litert import schema_py_generated as schema

from featherfed.models.errors import ModelError
from featherfed.models.export import KINDS, ModelFiles
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import TfliteModel
from featherfed.models.unrolling import unrolled
from featherfed.proto.plan_terms import Method

layers = tf_keras.layers
SHAPE = (6, 4, 1)
ROWS = layers.Reshape((6, 4))
TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "dynamic": 0.05, "int8": 0.08}
LOOPS = {"CUSTOM", "DELEGATE", "WHILE", "IF", "CALL_ONCE", "VAR_HANDLE"}


def ended(*stack: Any) -> Any:
    return tf_keras.Sequential(
        [layers.InputLayer(SHAPE), *stack, layers.Flatten(), layers.Dense(3, activation="softmax")]
    )


def recurrent() -> Any:
    return ended(
        ROWS, layers.GRU(4, return_sequences=True), layers.LSTM(3, return_sequences=True),
        layers.SimpleRNN(3),
    )  # fmt: skip


def masked() -> Any:
    both = layers.Bidirectional(layers.GRU(2, return_sequences=True))
    return ended(ROWS, layers.Masking(), both, layers.LSTM(3, go_backwards=True))


def nested() -> Any:
    inner = tf_keras.Sequential([layers.InputLayer((6, 4)), layers.GRU(2)], name="inner")
    image = tf_keras.Input(SHAPE)
    each = layers.TimeDistributed(layers.LSTM(2))(image)
    joined = layers.Concatenate()([inner(layers.Reshape((6, 4))(image)), layers.Flatten()(each)])
    return tf_keras.Model(image, layers.Dense(3, activation="softmax")(joined))


def attention() -> Any:
    image = tf_keras.Input(SHAPE)
    x = layers.Reshape((6, 4))(image)
    seen = layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(layers.Add()([x, seen]))
    x = layers.Dense(4, activation="gelu")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return tf_keras.Model(image, layers.Dense(3, activation="softmax")(x))


def line() -> Any:
    return ended(
        ROWS, layers.ZeroPadding1D(2), layers.Conv1D(4, 3, padding="causal", dilation_rate=2),
        layers.MaxPooling1D(), layers.Conv1DTranspose(3, 3, strides=2), layers.UpSampling1D(2),
        layers.AveragePooling1D(), layers.Cropping1D(1), layers.Permute((2, 1)),
        layers.GlobalMaxPooling1D(), layers.RepeatVector(2),
    )  # fmt: skip


def image() -> Any:
    return ended(
        layers.Conv2DTranspose(3, 3, strides=2, padding="same"), layers.ZeroPadding2D(1),
        layers.UpSampling2D(interpolation="bilinear"), layers.UpSampling2D(), layers.Cropping2D(2),
        layers.GaussianNoise(0.1),
    )  # fmt: skip


def words() -> Any:
    return ended(
        layers.Rescaling(255.0), layers.Reshape((24,)), layers.Embedding(256, 3, mask_zero=True),
        layers.GlobalAveragePooling1D(),
    )  # fmt: skip


def padded() -> Any:
    """Images of which some end in rows of zeros."""
    images = np.random.default_rng(0).integers(1, 256, (40, *SHAPE), np.uint8)
    for k in range(0, 40, 2):
        images[k, 2 + k % 4 :] = 0
    return images


@pytest.mark.slow  # conversions
@pytest.mark.parametrize(
    "make",
    [recurrent, masked, nested, attention, line, image, words],
    ids=lambda make: make.__name__,
)
def test_every_kind_is_builtin_operators_and_answers_as_keras_does(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    tf_keras.utils.set_random_seed(0)
    model, images = FederatedModel(make()), padded()
    expected = model.predict([images])
    files = ModelFiles(model, tmp_path, [images])
    for kind in KINDS:
        content = files.tflite(kind)
        assert not operators(content) & LOOPS
        off = np.abs(TfliteModel(content).predict([images]) - expected).max()
        assert off <= TOLERANCE[kind], (kind, off)


def operators(content: bytes) -> set[str]:
    """Return the names of a .tflite's operators."""
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    codes = schema.ModelT.InitFromPackedBuf(content, 0).operatorCodes
    return {names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes}


def test_what_needs_no_unrolling_stays_as_it_is() -> None:
    model = attention()
    assert unrolled(model) is model


@pytest.mark.slow  # conversions
def test_very_long_sequences_are_warned_of() -> None:
    model = tf_keras.Sequential([layers.InputLayer((301, 1)), layers.SimpleRNN(1, name="slow")])
    with pytest.warns(UserWarning, match=r"'slow'.*301 time steps.*windows"):
        unrolled(model)


def test_sequences_of_no_fixed_length_are_refused() -> None:
    model = tf_keras.Sequential([layers.InputLayer((None, 1)), layers.GRU(1, name="open")])
    with pytest.raises(ModelError, match=r"sequences of open a fixed length"):
        unrolled(model)


@pytest.mark.parametrize(
    "layer", [layers.Conv1D(2, 2), layers.GRU(2), layers.MaxPooling1D()], ids=lambda x: x.name
)
def test_what_tfmot_cannot_quantize_is_named(layer: Any) -> None:
    with pytest.raises(ModelError, match=rf"(?s)TFMOT.*method none.*{type(layer).__name__}"):
        FederatedModel(ended(layers.Reshape((6, 4)), layer), Optimization(Method.QAT))
