"""Transfer learning: a frozen backbone that the user brings, and a new head that is federated."""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
pytest.importorskip("tensorflow_model_optimization")
keras = pytest.importorskip("keras", minversion="3")
pytest.importorskip("sklearn.datasets")

import tf_keras
from support.keras_runs import keras_run

from featherfed.api.build import build_model, run_task
from featherfed.compression.exchange.manifest import Manifest, Role
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.litert_trainer import LitertTrainer
from featherfed.exporter.training_step import TrainingStepOptions, export_training_step
from featherfed.models.errors import ModelError
from featherfed.models.keras3 import to_keras2
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method
from featherfed.server.settings.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CLIENTS = 5
ROUNDS = 4


def backbone() -> Any:
    """Return a small MobileNet (Howard et al. 2017) of Keras 3 for 8x8 digits, without a head."""
    keras.utils.clear_session()
    layers = keras.layers

    def normalized(convolution: Any) -> list[Any]:
        return [convolution, layers.BatchNormalization(momentum=0.9), layers.ReLU(6.0)]

    stack = [
        keras.Input((8, 8, 1)),
        *normalized(layers.Conv2D(16, 3, padding="same", use_bias=False)),
    ]
    for filters, strides in ((32, 1), (64, 2)):
        depth = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)
        stack += normalized(depth) + normalized(layers.Conv2D(filters, 1, use_bias=False))
    return keras.Sequential([*stack, layers.GlobalAveragePooling2D()], name="backbone")


@pytest.fixture(scope="module")
def digits() -> tuple[Dataset, Dataset]:
    return load_train_test("digits")


@pytest.fixture(scope="module")
def own_model(digits: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a .keras file: a backbone trained on even and odd, frozen, and a new head on it."""
    train, _ = digits
    features = backbone()
    keras.utils.set_random_seed(1)
    start = keras.Sequential([features, keras.layers.Dense(2, "softmax")])
    start.compile("adam", "sparse_categorical_crossentropy")
    start.fit(train.images / np.float32(255), train.labels % 2, epochs=6, verbose=0)
    features.trainable = False
    image = keras.Input((8, 8, 1))
    out = keras.layers.Dense(10, "softmax", name="classes")(features(image, training=False))
    path = tmp_path_factory.mktemp("own") / "digits.keras"
    keras.Model(image, out).save(path)
    return path


def settings_of(model: Path, **changes: Any) -> Settings:
    given = {
        "rounds": ROUNDS,
        "model": {"name": str(model)},
        "training": {"epochs": 3, "learning_rate": 0.3},
        "clients": {"minimum": CLIENTS, "patience": 0},
        "evaluation": {"dataset": "digits", "clients": 0},
        **changes,
    }
    return Settings.model_validate(given)


def roles_of(manifest: Manifest) -> dict[Role, int]:
    """Return the number of values of each role."""
    return {role: sum(s.size for s in manifest if s.role is role) for role in Role}


@pytest.mark.slow  # trains a backbone first
@pytest.mark.parametrize(
    "uplink",
    [
        "balanced",
        *(
            pytest.param(codec, marks=pytest.mark.slow)
            for codec in ("float32", "quantize(8) | zstd")
        ),
    ],
)
def test_only_the_head_travels(
    uplink: str, own_model: Path, digits: tuple[Dataset, Dataset]
) -> None:
    train, test = digits
    settings = settings_of(own_model, compression={"uplink": uplink})
    model = build_model(settings, run_task(settings, test))
    assert roles_of(model.manifest) == {
        Role.TRAINABLE: 650, Role.FROZEN: 3_776, Role.STATISTIC: 0, Role.NONNEGATIVE: 0
    }  # fmt: skip
    first = model.first_weights()
    assert first is not None
    parts = partition(train.labels, CLIENTS, "iid", 0)
    data = {f"client-{i}": train.take(indices) for i, indices in enumerate(parts)}
    metrics = keras_run(settings, data, test, lambda name, trainer: trainer)
    ups = [[c["uplink"]["payload_bytes"] for c in r["clients"]] for r in metrics["rounds"]]
    downs = [[c["downlink"]["payload_bytes"] for c in r["clients"]] for r in metrics["rounds"]]
    accuracies = [round_["scores"]["accuracy"] for round_ in metrics["rounds"]]
    print(f"{uplink}: {ups[-1]} bytes up, {downs[-1]} down, accuracy {accuracies}")
    head = 4 * 650
    assert max(map(max, ups)) <= head + 64
    assert max(map(max, downs[1:])) <= CLIENTS * (head + 64)
    assert min(downs[0]) > 4 * 3_776 * 0.8  # the backbone, once
    assert accuracies[-1] > max(0.55, accuracies[0])
    assert metrics["float32_bytes"] == head


# ---- what training leaves as it was ----


def frozen_and_not() -> Any:
    """Return a tf_keras model with frozen layers of each kind that trains or keeps statistics."""
    layers = tf_keras.layers
    frozen = [
        layers.Conv2D(4, 3, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="relu"),
        layers.DepthwiseConv2D(3, name="depth"),
    ]
    for layer in frozen:
        layer.trainable = False
    head = [
        layers.Conv2D(4, 1, use_bias=False, name="point"),
        layers.BatchNormalization(name="own_norm"),
        layers.ReLU(name="own_relu"),
        layers.Flatten(name="flat"),
        layers.Dense(10, activation="softmax", name="classes"),
    ]
    return tf_keras.Sequential([layers.InputLayer((8, 8, 1)), *frozen, *head])


def some_weights(model: FederatedModel) -> list[np.ndarray]:
    """Return weights of which no frozen one is zero or one."""
    rng = np.random.default_rng(0)
    return [
        rng.uniform(0.1, 0.3, w.shape).astype(np.float32) if s.role is Role.FROZEN else w
        for s, w in zip(model.manifest, model.get_weights(), strict=True)
    ]


@pytest.mark.parametrize(
    "method",
    [
        method if method in ("none", "prune") else pytest.param(method, marks=pytest.mark.slow)
        for method in Method
    ],
)
@pytest.mark.parametrize("runtime", ["keras", "litert"])
def test_training_leaves_frozen_tensors_alone(
    method: Method, runtime: str, digits: tuple[Dataset, Dataset]
) -> None:
    model = FederatedModel(frozen_and_not(), Optimization(method, 4))
    frozen = {spec.name for spec in model.manifest if spec.role is Role.FROZEN}
    assert {name.split("/")[0] for name in frozen} == {"conv", "norm", "depth"}
    assert len(frozen) == 8
    sparsity = 0.5 if method.prunes else 0.0
    start, data = some_weights(model), digits[0].take(range(64))
    start = mask_weights(start, magnitude_masks(model.manifest, start, sparsity))
    if runtime == "keras":
        model.set_weights(start)
        model.fit(data.inputs, data.targets, learning_rate=0.1, sparsity=sparsity)
        after = model.get_weights()
    elif method.needs_keras:
        pytest.skip("Keras alone trains centroids")
    else:
        plan = pb.Plan(
            training=pb.Training(epochs=1, batch_size=16, learning_rate=0.1, optimizer="sgd"),
            optimization=pb.Optimization(method=method),
        )
        step = export_training_step(model, TrainingStepOptions(16, "sgd"))
        examples = Examples(model.task, data)
        trainer = LitertTrainer(plan, model.manifest, step, examples, client="c", trusted=True)
        after = trainer.train(start, pb.Train(round=1, sparsity=sparsity)).weights
    for spec, before, now in zip(model.manifest, start, after, strict=True):
        moved = before.tobytes() != now.tobytes()
        assert not moved if spec.role is Role.FROZEN else moved or "quant" in spec.name, spec.name


def test_a_frozen_model_inside_is_frozen_whole() -> None:
    keras.utils.clear_session()
    norm = keras.layers.BatchNormalization(name="norm")
    inner = keras.Sequential([keras.Input((4,)), norm], name="inner")
    inner.trainable = False
    norm.trainable = True  # Keras 2 would go on training it
    start = keras.Input((4,))
    out = keras.layers.Dense(2, activation="softmax", name="classes")(inner(start))
    model = FederatedModel(json.dumps(to_keras2(json.loads(keras.Model(start, out).to_json()))))
    roles = {spec.name: spec.role for spec in model.manifest}
    assert {name for name, role in roles.items() if role is Role.FROZEN} == {
        "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance"
    }  # fmt: skip


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = frozen_and_not()
    model.trainable = False
    with pytest.raises(ModelError, match="all of the model's layers are frozen"):
        FederatedModel(model)
