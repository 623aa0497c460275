"""Keras 3 models become Keras 2 models that compute the same: layer by layer, and whole models."""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
pytest.importorskip("tensorflow_model_optimization")
keras = pytest.importorskip("keras", minversion="3")

from featherfed.models.description import exchanged
from featherfed.models.errors import ModelError
from featherfed.models.keras3 import ACTIVATIONS, LAYERS, is_keras3, to_keras2
from featherfed.models.model_files import LoadedModel, load_file, load_model
from featherfed.models.serialization import from_json

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*saving your model as an HDF5 file:UserWarning"),
]
L = keras.layers
IMAGE, LINE, FLAT = (8, 9, 4), (7, 5), (6,)
Make = Callable[[Any], Any]

CASES: dict[str, tuple[tuple[int, ...], Make]] = {
    "Dense": (FLAT, lambda x: L.Dense(5, "tanh")(x)),
    "Dense, no bias": (
        LINE, lambda x: L.Dense(5, use_bias=False, kernel_initializer="he_normal")(x)
    ),
    "Conv1D": (LINE, lambda x: L.Conv1D(6, 3, strides=2, padding="same", activation="relu")(x)),
    "Conv1D, causal": (LINE, lambda x: L.Conv1D(6, 3, padding="causal", dilation_rate=2)(x)),
    "Conv2D": (IMAGE, lambda x: L.Conv2D(6, (3, 2), strides=2, padding="same")(x)),
    "Conv2D, groups": (IMAGE, lambda x: L.Conv2D(8, 3, groups=2, use_bias=False)(x)),
    "Conv2D, dilated": (IMAGE, lambda x: L.Conv2D(3, 3, dilation_rate=2)(x)),
    "DepthwiseConv2D": (IMAGE, lambda x: L.DepthwiseConv2D(3, strides=2, depth_multiplier=2)(x)),
    "SeparableConv2D": (
        IMAGE, lambda x: L.SeparableConv2D(5, 3, padding="same", depth_multiplier=2)(x)
    ),
    "Conv2DTranspose": (IMAGE, lambda x: L.Conv2DTranspose(5, 3, strides=2, padding="same")(x)),
    "Conv2DTranspose, valid": (IMAGE, lambda x: L.Conv2DTranspose(5, (3, 2), strides=(2, 3))(x)),
    "MaxPooling1D": (LINE, lambda x: L.MaxPooling1D(2, padding="same")(x)),
    "MaxPooling2D": (IMAGE, lambda x: L.MaxPooling2D(3, strides=2, padding="same")(x)),
    "AveragePooling1D": (LINE, lambda x: L.AveragePooling1D(3, 2, padding="same")(x)),
    "AveragePooling2D": (IMAGE, lambda x: L.AveragePooling2D(3, strides=2, padding="same")(x)),
    "GlobalMaxPooling1D": (LINE, lambda x: L.GlobalMaxPooling1D()(x)),
    "GlobalMaxPooling2D": (IMAGE, lambda x: L.GlobalMaxPooling2D(keepdims=True)(x)),
    "GlobalAveragePooling1D": (LINE, lambda x: L.GlobalAveragePooling1D()(x)),
    "GlobalAveragePooling2D": (IMAGE, lambda x: L.GlobalAveragePooling2D(keepdims=True)(x)),
    "BatchNormalization": (IMAGE, lambda x: L.BatchNormalization(epsilon=0.01)(x)),
    "BatchNormalization, no scale": (FLAT, lambda x: L.BatchNormalization(scale=False)(x)),
    "LayerNormalization": (IMAGE, lambda x: L.LayerNormalization(epsilon=0.01)(x)),
    "LayerNormalization, two axes": (IMAGE, lambda x: L.LayerNormalization([-2, -1])(x)),
    "Dropout": (FLAT, lambda x: L.Dropout(0.5, seed=3)(x)),
    "SpatialDropout1D": (LINE, lambda x: L.SpatialDropout1D(0.5)(x)),
    "SpatialDropout2D": (IMAGE, lambda x: L.SpatialDropout2D(0.5)(x)),
    "GaussianNoise": (FLAT, lambda x: L.GaussianNoise(0.5)(x)),
    "Flatten": (IMAGE, lambda x: L.Flatten()(x)),
    "Reshape": (IMAGE, lambda x: L.Reshape((-1, 6))(x)),
    "Permute": (IMAGE, lambda x: L.Permute((2, 3, 1))(x)),
    "RepeatVector": (FLAT, lambda x: L.RepeatVector(3)(x)),
    "ZeroPadding1D": (LINE, lambda x: L.ZeroPadding1D((1, 2))(x)),
    "ZeroPadding2D": (IMAGE, lambda x: L.ZeroPadding2D(((1, 2), (0, 3)))(x)),
    "UpSampling1D": (LINE, lambda x: L.UpSampling1D(3)(x)),
    "UpSampling2D": (IMAGE, lambda x: L.UpSampling2D((2, 3))(x)),
    "UpSampling2D, bilinear": (IMAGE, lambda x: L.UpSampling2D(2, interpolation="bilinear")(x)),
    "Cropping1D": (LINE, lambda x: L.Cropping1D((1, 2))(x)),
    "Cropping2D": (IMAGE, lambda x: L.Cropping2D(((1, 2), (0, 3)))(x)),
    "Embedding": (FLAT, lambda x: L.Embedding(10, 4)(x)),
    "Embedding, masked": (FLAT, lambda x: L.LSTM(4)(L.Embedding(10, 4, mask_zero=True)(x))),
    "SimpleRNN": (LINE, lambda x: L.SimpleRNN(4, return_sequences=True)(x)),
    "LSTM": (LINE, lambda x: L.LSTM(4, dropout=0.2)(x)),
    "LSTM, unrolled": (LINE, lambda x: L.LSTM(4, unroll=True, unit_forget_bias=False)(x)),
    "GRU": (LINE, lambda x: L.GRU(4)(x)),
    "GRU, reset before": (LINE, lambda x: L.GRU(4, reset_after=False, go_backwards=True)(x)),
    "GRU, with states": (LINE, lambda x: _with_states(x)),
    "Bidirectional": (LINE, lambda x: L.Bidirectional(L.GRU(4, return_sequences=True))(x)),
    "Bidirectional, two kinds": (
        LINE,
        lambda x: L.Bidirectional(
            L.LSTM(4, name="there"),
            backward_layer=L.LSTM(4, activation="relu", go_backwards=True, name="back"),
            merge_mode="sum",
        )(x),
    ),
    "TimeDistributed": (LINE, lambda x: L.TimeDistributed(L.Dense(3, "relu"))(x)),
    "MultiHeadAttention": (LINE, lambda x: L.MultiHeadAttention(2, 3, dropout=0.1)(x, x)),
    "MultiHeadAttention, by name": (
        LINE, lambda x: L.MultiHeadAttention(2, 3, value_dim=4)(query=x, value=L.Dense(5)(x), key=x)
    ),
    "MultiHeadAttention, masked": (
        LINE, lambda x: L.MultiHeadAttention(2, 3)(L.Masking(0.0)(x), L.Masking(0.0)(x))
    ),
    "Bidirectional, masked": (LINE, lambda x: L.Bidirectional(L.GRU(4))(L.Masking(0.0)(x))),
    "Add": (FLAT, lambda x: L.Add()([x, L.Dense(6)(x), x])),
    "Subtract": (FLAT, lambda x: L.Subtract()([L.Dense(6)(x), x])),
    "Multiply": (FLAT, lambda x: L.Multiply()([x, L.Dense(6)(x)])),
    "Average": (FLAT, lambda x: L.Average()([x, L.Dense(6)(x)])),
    "Maximum": (FLAT, lambda x: L.Maximum()([x, L.Dense(6)(x)])),
    "Concatenate": (IMAGE, lambda x: L.Concatenate(axis=1)([x, L.Conv2D(4, 1)(x)])),
    "ReLU": (FLAT, lambda x: L.ReLU(6.0, negative_slope=0.1, threshold=0.2)(x)),
    "LeakyReLU": (FLAT, lambda x: L.LeakyReLU(0.1)(x)),
    "LeakyReLU, default": (FLAT, lambda x: L.LeakyReLU()(x)),
    "ELU": (FLAT, lambda x: L.ELU(0.7)(x)),
    "Softmax": (LINE, lambda x: L.Softmax(axis=1)(x)),
    "Rescaling": (IMAGE, lambda x: L.Rescaling(1 / 127.5, offset=-1.0)(x)),
    "Rescaling, channels": (IMAGE, lambda x: L.Rescaling([1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3])(x)),
    "Masking": (LINE, lambda x: L.GRU(4)(L.Masking(0.0)(x))),
    **{
        f"Activation, {name}": (FLAT, lambda x, name=name: L.Activation(name)(x))
        for name in sorted(ACTIVATIONS)
    },
    "Sequential inside": (FLAT, lambda x: _inner_sequential()(L.Dense(4)(x), training=False)),
    "Functional inside, twice": (FLAT, lambda x: _twice(x)),
    "branches": (IMAGE, lambda x: _branches(x)),
}  # fmt: skip
"""Name -> shape of an example, and what is built on it."""


def _with_states(x: Any) -> Any:
    _, first, second = L.LSTM(4, return_state=True)(x)
    return L.LSTM(4)(x, initial_state=[first, second])


def _inner_sequential() -> Any:
    inner = keras.Sequential([L.Dense(5), L.BatchNormalization(), L.Dropout(0.5)], name="inner")
    inner.build((None, 4))
    inner.trainable = False
    return inner


def _twice(x: Any) -> Any:
    start = keras.Input((6,))
    inner = keras.Model(start, L.Add()([L.Dense(6)(start), start]), name="shared")
    return L.Dense(2)(inner(inner(x)))


def _branches(x: Any) -> Any:
    long = L.Conv2D(4, 3, padding="same")(L.Conv2D(4, 3, padding="same")(x))
    short = L.Conv2D(4, 1)(x)
    joined = L.ReLU()(L.Add()([short, long]))
    return L.Concatenate()([L.GlobalAveragePooling2D()(joined), L.GlobalMaxPooling2D()(short)])


def made(case: str) -> Any:
    """Return a Keras 3 model whose weights are all different, in every layer."""
    keras.utils.clear_session()
    shape, make = CASES[case]
    inputs = keras.Input(shape, dtype="int32" if "Embedding" in case else "float32")
    model = keras.Model(inputs, make(inputs))
    shake(model)
    return model


def shake(model: Any) -> None:
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.dtype == "float32":
            noise = rng.normal(0, 0.3, variable.shape)
            variable.assign(np.abs(noise) + 0.1 if "variance" in variable.path else noise)


def rebuilt(loaded: LoadedModel) -> Any:
    model = from_json(loaded.json)
    assert loaded.weights is not None
    for variable, tensor in zip(exchanged(model), loaded.weights, strict=True):
        variable.assign(tensor)
    return model


def examples(model: Any) -> np.ndarray:
    rng = np.random.default_rng(2)
    shape = (3, *model.inputs[0].shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 10, shape).astype(np.int32)
    given = rng.normal(0, 2, shape).astype(np.float32)
    if len(shape) == 3:
        given[:, -2:] = 0  # steps to mask
    return given


def difference(keras3: Any, keras2: Any, training: bool = False) -> float:
    given = examples(keras3)
    first, second = keras3(given, training=training), keras2(given, training=training)
    assert tuple(first.shape) == tuple(second.shape)
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


@pytest.mark.parametrize(
    "case",  # every fourth one in minutes, all of them in `make test-all`
    [pytest.param(c, marks=[pytest.mark.slow] if n % 4 else []) for n, c in enumerate(CASES)],
)
def test_a_layer_computes_the_same(case: str, tmp_path: Path, record_property: Any) -> None:
    model = made(case)
    model.save(tmp_path / "model.keras")
    found = rebuilt(load_file(tmp_path / "model.keras"))
    largest = difference(model, found)
    print(f"{case}: {largest:.2g}")
    assert largest <= 2e-6
    assert not is_keras3(json.loads(load_file(tmp_path / "model.keras").json))


@pytest.mark.slow
def test_every_layer_is_compared() -> None:
    used = {
        layer["class_name"]
        for case in CASES
        for layer in _all_layers(json.loads(made(case).to_json()))
    }
    assert used >= LAYERS | {"Sequential", "Functional"}


def _all_layers(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [found for item in node for found in _all_layers(item)]
    if not isinstance(node, dict):
        return []
    own = [node] if str(node.get("module", "")).startswith("keras") else []
    return own + [found for item in node.values() for found in _all_layers(item)]


# ---- files and functions ----


def image_model() -> Any:
    """Return a Keras 3 classifier with a frozen part and two layers of one class and shape."""
    keras.utils.clear_session()
    backbone = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(4, 3, padding="same", use_bias=False),
            L.BatchNormalization(),
            L.LeakyReLU(0.1),
            L.Dropout(0.2),
        ],
        name="backbone",
    )
    backbone.trainable = False
    image = keras.Input((8, 8, 1))
    features = backbone(image, training=False)
    branches = [L.Conv2D(4, 1)(features), L.Conv2D(4, 1)(features)]
    out = L.Dense(10, "softmax")(L.Flatten()(L.Subtract()(branches)))
    model = keras.Model(image, out)
    shake(model)
    return model


def two_images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((2, 8, 8, 1), np.float32)


def check_same(first: Any, second: Any) -> None:
    given = two_images()
    assert np.abs(np.asarray(first(given)) - np.asarray(second(given))).max() < 2e-6


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_model_of_keras_3_from_a_file(name: str, tmp_path: Path) -> None:
    model = image_model()
    model.save(tmp_path / name)
    found = rebuilt(load_model(str(tmp_path / name), no_built_in))
    check_same(model, found)
    names = [variable.name for variable in found.trainable_variables]
    assert len(names) == 6
    assert not any("backbone" in name or "normalization" in name for name in names)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
def test_a_model_of_keras_2_from_a_file(name: str, tmp_path: Path) -> None:
    model = rebuilt(as_file(image_model(), tmp_path))
    model.save(tmp_path / name, **({} if "." in name else {"save_format": "tf"}))
    found = rebuilt(load_model(str(tmp_path / name), no_built_in))
    check_same(model, found)
    assert len(found.trainable_variables) == 6


def as_file(model: Any, folder: Path) -> LoadedModel:
    model.save(folder / "first.keras")
    return load_file(folder / "first.keras")


def no_built_in() -> Any:
    raise AssertionError("not a built-in name")


def test_json_of_either_keras_has_no_weights(tmp_path: Path) -> None:
    model = image_model()
    (tmp_path / "three.json").write_text(model.to_json(), "utf-8")
    three = load_model(str(tmp_path / "three.json"), no_built_in)
    (tmp_path / "two.json").write_text(three.json, "utf-8")
    two = load_model(str(tmp_path / "two.json"), no_built_in)
    assert three.weights is None
    assert two.weights is None
    assert two.json == three.json == as_file(model, tmp_path).json


def test_a_built_in_model_is_built() -> None:
    built = from_json(json.dumps(to_keras2(json.loads(image_model().to_json()))))
    found = load_model("cnn", lambda: built)
    assert found.weights is None
    assert from_json(found.json).count_params() == built.count_params()


@pytest.mark.parametrize("which", ["keras", "tf_keras"])
def test_a_function_gives_the_model(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"my_{which}.py").write_text(
        f"import {which} as k\n"
        "def make():\n"
        "    layers = [k.layers.Dense(3, 'tanh'), k.layers.BatchNormalization()]\n"
        "    model = k.Sequential([k.Input((4,)), *layers, k.layers.Dense(2)])\n"
        "    model.layers[0].bias.assign([1.0, 2.0, 3.0])\n"
        "    return model\n"
        "def text():\n"
        "    return 'a model'\n"
        "def fails():\n"
        "    raise RuntimeError('no data')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = [load_model(f"my_{which}:make", no_built_in).json for _ in range(2)]
    assert names[0] == names[1]
    found = rebuilt(load_model(f"my_{which}:make", no_built_in))
    assert np.allclose(found.layers[0].bias, [1, 2, 3])
    with pytest.raises(ModelError, match="gave str; return"):
        load_model(f"my_{which}:text", no_built_in)
    with pytest.raises(ModelError, match="raised RuntimeError: no data"):
        load_model(f"my_{which}:fails", no_built_in)
    with pytest.raises(ModelError, match="no function 'none'"):
        load_model(f"my_{which}:none", no_built_in)
    with pytest.raises(ModelError, match="no function 'make'"):
        load_model("nowhere_at_all:make", no_built_in)
