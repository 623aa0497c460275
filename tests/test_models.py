"""Models, TFMOT and export, on real 8x8 digits and tiny networks."""

# ruff: noqa: E402
from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")
sklearn_datasets = pytest.importorskip("sklearn.datasets")

import tf_keras

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Fill, Role, Uniform
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.order import epoch_order
from featherfed.models import zoo
from featherfed.models.description import uniform_limit
from featherfed.models.errors import ModelError
from featherfed.models.export import export, load_keras
from featherfed.models.optimized import FederatedModel, Method, Optimization
from featherfed.models.serialization import MAX_JSON_BYTES, from_json, to_json
from featherfed.models.tflite import TfliteModel
from featherfed.models.wrapping import kmeans

layers = tf_keras.layers
SHAPE = (8, 8, 1)


Examples = tuple[list[np.ndarray], np.ndarray]
"""Inputs, of which there is one, and targets."""


@pytest.fixture(scope="module")
def digits() -> Examples:
    data = sklearn_datasets.load_digits()
    return [(data.images[:600, ..., None] * (255 / 16)).astype(np.uint8)], data.target[:600]


def some(inputs: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Return the inputs of the first examples."""
    return [values[:count] for values in inputs]


def small() -> Any:
    return tf_keras.Sequential(
        [
            layers.InputLayer(SHAPE),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="out"),
        ]
    )


def normalized() -> Any:
    return tf_keras.Sequential(
        [
            layers.InputLayer(SHAPE),
            layers.Conv2D(4, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depth"),
            layers.Flatten(),
            layers.Dropout(0.1),
            layers.Dense(10, activation="softmax", name="out"),
        ]
    )


def federated(
    method: Method, make: Callable[[], Any] = small, seed: int = 1, clusters: int = 16
) -> FederatedModel:
    model = FederatedModel(to_json(make()), Optimization(method, clusters))
    model.set_weights(initial_weights(model.manifest, seed))
    return model


# --- architectures and their JSON


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("cnn", (28, 28, 1), 225_034),
        ("cnn", SHAPE, 28_426),
        ("mlp", SHAPE, 9_610),
        ("mobile", (28, 28, 1), 50_698),
        ("gru", (28, 28, 1), 61_962),
    ],
)
def test_architectures_have_their_size(
    name: str, shape: tuple[int, int, int], parameters: int
) -> None:
    model = zoo.build(name, shape, 10)
    assert model.count_params() == parameters
    assert to_json(zoo.build(name, shape, 10)) == to_json(model)
    assert from_json(to_json(model)).count_params() == parameters


def test_architectures_that_do_not_exist_or_fit() -> None:
    with pytest.raises(ValueError, match="cnn, mlp, mobile, gru"):
        zoo.build("vgg", SHAPE, 10)
    with pytest.raises(ValueError, match="8x8"):
        zoo.build("cnn", (6, 6, 1), 10)


def functional() -> Any:
    image = tf_keras.Input((4, 3))
    steps = layers.TimeDistributed(layers.Dense(2, kernel_regularizer="l2"), name="steps")(image)
    memory = layers.Bidirectional(layers.GRU(2), name="memory")(image)
    joined = layers.Concatenate()([layers.Flatten()(steps), memory])
    inner = tf_keras.Sequential([layers.InputLayer((12,)), layers.Dense(3)], name="inner")
    return tf_keras.Model(image, layers.Softmax()(inner(joined)))


@pytest.mark.parametrize("make", [functional, normalized])
def test_json_round_trip(make: Callable[[], Any]) -> None:
    first, second = from_json(to_json(make())), from_json(to_json(make()))
    shapes = [variable.shape for variable in make().weights]
    assert [v.shape for v in first.weights] == [v.shape for v in second.weights] == shapes


def test_names_do_not_depend_on_what_was_built_before() -> None:
    text = to_json(functional())
    manifests = [FederatedModel(text).manifest for _ in range(2)]
    assert manifests[0].digest == manifests[1].digest
    quantized = [federated(Method.QAT).manifest for _ in range(2)]
    assert quantized[0].digest == quantized[1].digest


def _nodes(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for item in node for found in _nodes(item)]
    if not isinstance(node, dict):
        return []
    return [node, *(found for value in node.values() for found in _nodes(value))]


@functools.cache
def functional_json() -> str:
    return to_json(functional())


def _tampered(victim: str, changes: dict[str, Any]) -> str:
    config = json.loads(functional_json())
    next(n for n in _nodes(config) if n.get("class_name") == victim and "module" in n).update(
        changes
    )
    return json.dumps(config)


@pytest.mark.parametrize("victim", ["Flatten", "Dense", "GRU", "Sequential", "GlorotUniform", "L2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"class_name": "Lambda"},
        {"class_name": "TFOpLambda", "module": "tf_keras.src.layers.core.tf_op_layer"},
        {"class_name": "SlicingOpLambda"},
        {"class_name": "StringLookup", "module": "keras.layers"},
        {"class_name": "system", "module": "os", "config": "true"},
        {"class_name": "function", "module": "os", "config": "system"},
        {"class_name": "__lambda__", "module": "builtins"},
        {"registered_name": "evil>Layer"},
        {"module": None},
        {"module": "keras.layers.os"},
        {"class_name": "Unheard"},
        {"class_name": ["Dense"]},
        {"compile_config": {"loss": "mse"}},
    ],
)
def test_hostile_json_is_refused(victim: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        from_json(_tampered(victim, changes))


def test_models_with_code_name_the_layer() -> None:
    image = tf_keras.Input((3,))
    code = tf_keras.Model(image, layers.Lambda(lambda x: x * 2, name="sneaky")(image))
    with pytest.raises(ModelError, match="sneaky"):
        from_json(to_json(code))
    with pytest.raises(ModelError, match="no operators"):
        from_json(to_json(tf_keras.Model(image, image * 2)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"class_name": "Sequential", "config": {"layers": []}}',
        '{"class_name": "Sequential", "config": 7}',
        '{"class_name": "Sequential"' + " " * MAX_JSON_BYTES + "}",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        from_json(text)


def test_unknown_activations_large_models_and_other_floats_are_refused() -> None:
    with pytest.raises(ModelError, match="activation"):
        from_json(to_json(small()).replace('"softmax"', '"serialize"'))
    with pytest.raises(ModelError, match="parameters"):
        from_json(to_json(small()).replace('"units": 10', '"units": 1000000000'))
    with pytest.raises(ModelError, match="float32"):
        from_json(to_json(small()).replace('"float32"', '"float16"'))


# --- the manifest


def test_manifest_of_a_normalized_model() -> None:
    model = federated(Method.PRUNE, normalized)
    specs = {spec.name: spec for spec in model.manifest}
    assert specs["norm/moving_variance"].role is Role.NONNEGATIVE
    assert specs["norm/moving_variance"].initial == Fill(1.0)
    assert specs["norm/moving_mean"].role is Role.STATISTIC
    assert specs["norm/gamma"].role is Role.TRAINABLE
    assert {name for name, spec in specs.items() if spec.prunable} == {"conv/kernel", "out/kernel"}
    assert not any(spec.prunable for spec in federated(Method.NONE, normalized).manifest)
    assert not model.unseeded


def test_manifest_of_a_quantized_model_has_ranges_and_no_counters() -> None:
    model = federated(Method.PRUNE_QAT, normalized)
    specs = {spec.name: spec for spec in model.manifest}
    assert not [name for name in specs if "optimizer_step" in name or "mask" in name]
    assert specs["quant_conv/kernel_max"].role is Role.STATISTIC
    assert specs["quant_conv/kernel_max"].initial == Fill(6.0)
    assert isinstance(specs["depth/depthwise_kernel"].initial, Uniform)
    assert {name for name, spec in specs.items() if spec.prunable} == {"conv/kernel", "out/kernel"}


def test_what_a_manifest_cannot_start_is_named() -> None:
    unseeded = FederatedModel(to_json(functional())).unseeded
    assert len(unseeded) == 2
    assert all(name.endswith("recurrent_kernel") for name in unseeded)


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (200, 30), (3, 3, 64, 1)])
@pytest.mark.parametrize(
    "initializer",
    ["glorot_uniform", "he_uniform", "lecun_uniform", "random_uniform", "uniform"],
)
def test_uniform_limits_are_those_of_keras(initializer: str, shape: tuple[int, ...]) -> None:
    made = tf_keras.initializers.get(initializer)
    limit = uniform_limit(made, shape)
    assert limit == np.float32(limit)
    draws = [tf_keras.initializers.get(initializer)(shape).numpy() for _ in range(20)]
    values = np.abs(draws)
    assert values.max() <= limit
    assert values.max() > 0.99 * limit


def test_other_initializers_have_no_limit() -> None:
    kinds = tf_keras.initializers
    for other in (kinds.GlorotNormal(), kinds.Zeros(), kinds.RandomUniform(0, 1), None):
        assert uniform_limit(other, (3, 3)) is None


# --- training


@pytest.mark.parametrize("method", list(Method))
def test_weights_go_round(method: Method, digits: Examples) -> None:
    model = federated(method)
    given = [w + np.float32(0.01) for w in model.get_weights()]
    model.set_weights(given)
    assert all(np.array_equal(a, b) for a, b in zip(given, model.get_weights(), strict=True))
    with pytest.raises(ValueError, match="expected"):
        model.set_weights(given[1:])
    assert model.predict(some(digits[0], 3)).shape == (3, 10)


@pytest.mark.parametrize("method", list(Method))
def test_fits_learn_and_repeat(method: Method, digits: Examples) -> None:
    """The same seed and start give the same weights, with a model that was used before, too."""
    model, results = federated(method, clusters=8), []
    start = model.get_weights()
    sparsity = 0.5 if method.prunes else 0.0
    masks = magnitude_masks(model.manifest, start, sparsity)
    steps: list[tuple[int, int]] = []
    for _ in range(2):
        model.set_weights(mask_weights(start, masks))
        loss = model.fit(
            *digits, epochs=2, batch_size=32, learning_rate=0.05, optimizer="momentum",
            sparsity=sparsity, seed=3, on_step=lambda step, total: steps.append((step, total)),
        )  # fmt: skip
        results.append(model.get_weights())
    counts = [step for step, total in steps if total == 38]
    assert len(counts) == len(steps)
    half = len(counts) // 2
    assert counts[:half] == counts[half:] == sorted(set(counts))
    assert counts[-1] == 38
    assert loss < 1.5
    scores = model.evaluate(*digits)
    assert list(scores) == ["loss", "accuracy"]
    assert scores["loss"] < 1.5
    assert scores["accuracy"] > 0.5
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [small, normalized])
@pytest.mark.parametrize("method", [Method.PRUNE, Method.PRUNE_QAT])
def test_pruned_values_stay_zero(method: Method, make: Callable[[], Any], digits: Examples) -> None:
    model = federated(method, make)
    for sparsity in (0.3, 0.8, 0.8):
        masks = magnitude_masks(model.manifest, model.get_weights(), sparsity)
        start = mask_weights(model.get_weights(), masks)
        model.set_weights(start)
        model.fit(*digits, learning_rate=0.05, sparsity=sparsity, optimizer="adam")
        for mask, before, after in zip(masks, start, model.get_weights(), strict=True):
            if mask is not None:
                assert np.array_equal(after != 0, mask)
                assert not np.signbit(after[~mask]).any()
                assert not np.array_equal(before, after)


def test_a_fit_without_sparsity_prunes_nothing(digits: Examples) -> None:
    model = federated(Method.PRUNE)
    model.fit(*digits)
    for weight, spec in zip(model.get_weights(), model.manifest, strict=True):
        assert not spec.prunable or (weight != 0).all()


def test_clusters_of_the_finished_model(digits: Examples) -> None:
    model = federated(Method.CLUSTER, normalized, clusters=4)
    model.fit(*digits, learning_rate=0.05)
    model.set_weights([w + np.float32(1e-3) * i for i, w in enumerate(model.get_weights())])
    noisy = [np.array(w) for w in model.get_weights()]
    noisy[0] += np.random.default_rng(0).normal(0, 0.01, noisy[0].shape).astype(np.float32)
    model.set_weights(noisy)
    finished = model.finished()
    for name in ("conv", "out"):
        assert len(np.unique(finished.get_layer(name).get_weights()[0])) <= 4
    assert np.array_equal(model.get_weights()[0], noisy[0])


def test_kmeans_finds_separate_values() -> None:
    values = np.repeat(np.array([-1, 0.5, 0.6, 3], np.float32), [10, 1, 50, 3])
    assert kmeans(values, 4).shape == (4,)
    assert np.abs(values[:, None] - kmeans(values, 4)).min(axis=1).max() < 0.1
    assert np.array_equal(kmeans(np.zeros(5, np.float32), 3), np.zeros(3, np.float32))


def test_repeated_fits_trace_once(digits: Examples) -> None:
    model = federated(Method.PRUNE)
    model.fit(*digits, sparsity=0.2)
    train_step = model._sparse.fitter.model.train_function
    for sparsity in (0.4, 0.6):
        model.fit(*digits, sparsity=sparsity, learning_rate=0.1, seed=4)
    assert model._sparse.fitter.model.train_function is train_step
    assert np.mean(model.get_weights()[0] == 0) == pytest.approx(0.6, abs=0.02)


def test_order_is_a_permutation_and_changes() -> None:
    orders = [epoch_order(50, epoch, seed) for epoch, seed in ((0, 1), (1, 1), (0, 2))]
    assert all(np.array_equal(np.sort(order), np.arange(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.5}, "no sparsity"),
        ({"sparsity": 1.0}, "below 1"),
        ({"optimizer": "lion"}, "sgd, momentum, nesterov, adam"),
        ({"inputs": [np.zeros((600, 8, 8, 1), np.float32)]}, "input 'image' must be uint8"),
        ({"inputs": [np.zeros((600, 8, 8, 1), np.uint8)] * 2}, "2 inputs; the task needs image"),
        ({"targets": np.zeros(3, np.int64)}, "targets must be int64"),
        ({"targets": np.full(600, 10)}, "targets go from 10 to 10; the task has 0 to 9"),
        ({"targets": None}, "no targets"),
    ],
)
def test_fits_that_are_refused(changes: dict[str, Any], message: str, digits: Examples) -> None:
    with pytest.raises(ValueError, match=message):
        federated(Method.NONE).fit(**{"inputs": digits[0], "targets": digits[1], **changes})


# --- export


@pytest.mark.parametrize("method", [Method.NONE, Method.PRUNE_QAT])
def test_exported_files_agree_with_keras(method: Method, digits: Examples, tmp_path: Path) -> None:
    (images,), labels = digits
    model = federated(method)
    model.fit(*digits, epochs=6, learning_rate=0.1)
    expected = model.predict([images])
    *tflite, keras_file = export(model, tmp_path / "out", [images[:100]])
    assert [p.name for p in tflite] == [
        f"model_{kind}.tflite" for kind in ("float32", "float16", "dynamic", "int8")
    ]
    # Only int8 is the quantization-aware model itself.
    floats = model.plain()(images.astype(np.float32) / 255).numpy()
    assert np.abs(floats - expected).max() < (1e-5 if method is Method.NONE else 0.15)
    for path, tolerance in zip(tflite, (1e-5, 0.01, 0.1, 0.15), strict=True):
        found = TfliteModel(path).predict([images])
        assert found.dtype == np.float32
        reference = expected if path.stem.endswith("int8") else floats
        assert np.abs(found - reference).max() < tolerance, path.name
        accuracy = TfliteModel(path).evaluate([images], labels)["accuracy"]
        assert accuracy == pytest.approx(np.mean(expected.argmax(1) == labels), abs=0.02)
    loaded = load_keras(keras_file)(images.astype(np.float32) / 255).numpy()
    np.testing.assert_allclose(loaded, expected, atol=1e-5)


def test_both_runtimes_live_in_one_process_and_agree(
    digits: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(federated(Method.NONE), tmp_path, some(digits[0], 100))[0]
    light = TfliteModel(path)
    assert type(light._interpreter).__module__.startswith("ai_edge_litert")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    heavy = TfliteModel(path)
    assert type(heavy._interpreter).__module__.startswith("tensorflow")
    images = some(digits[0], 50)
    np.testing.assert_allclose(light.predict(images), heavy.predict(images), atol=1e-6)


def test_tflite_refuses_other_images(digits: Examples, tmp_path: Path) -> None:
    paths = export(federated(Method.NONE), tmp_path, some(digits[0], 5))
    model = TfliteModel(paths[0])
    assert model.task.inputs[0].shape == SHAPE
    assert model.predict(some(digits[0], 0)).shape == (0, 10)
    with pytest.raises(ValueError, match="uint8"):
        model.predict([digits[0][0][:5] / 255])
    with pytest.raises(ValueError, match="representative"):
        export(federated(Method.NONE), tmp_path, some(digits[0], 0))
