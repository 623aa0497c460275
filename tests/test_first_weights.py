"""`[model] weights`: where version 0 of a run comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")

import tf_keras

from featherfed.api.build import build_model, run_task
from featherfed.api.first_weights import set_first_weights
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import apply_update, encode_update
from featherfed.compression.registry import parse_codec
from featherfed.datasets.dataset import Dataset
from featherfed.models.errors import ModelError
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.proto.plan_terms import Method
from featherfed.server.coordinator.opening import open_run
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import ModelVersion
from featherfed.server.storage.store import Store


def network(units: int = 6) -> Any:
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((8, 8, 1)),
            layers.Flatten(name="flat"),
            layers.Dense(units, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="network",
    )


def test_set() -> Dataset:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    return Dataset.from_images(images, np.arange(4), tuple("abcdefghij"))


test_set.__test__ = False  # type: ignore[attr-defined]


def build(**model: str) -> FederatedModel:
    settings = Settings.model_validate({"model": model})
    return build_model(settings, run_task(settings, test_set()))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    """Return a model with weights of its own, and a .keras file of it."""
    keras = network()
    rng = np.random.default_rng(3)
    keras.set_weights([rng.normal(0, 1, w.shape) for w in keras.get_weights()])
    keras.save(tmp_path / "own.keras")
    return keras, tmp_path / "own.keras"


def test_a_file_model_starts_from_its_weights(saved: tuple[Any, Path]) -> None:
    keras, path = saved
    first = build(name=str(path)).first_weights()
    assert first is not None
    assert weights_digest(first) == weights_digest(keras.get_weights())
    assert build(name=str(path), weights="seed").first_weights() is None


def test_a_built_in_model_starts_from_the_seed() -> None:
    assert build(name="mlp").first_weights() is None
    assert build(name="mlp", weights="seed").first_weights() is None


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "folder"])
@pytest.mark.filterwarnings("ignore:.*saving your model as an HDF5 file:UserWarning")
def test_another_models_weights(name: str, saved: tuple[Any, Path], tmp_path: Path) -> None:
    keras, path = saved
    other = network()
    other.save(tmp_path / name, **({} if "." in name else {"save_format": "tf"}))
    first = build(name=str(path), weights=str(tmp_path / name)).first_weights()
    assert first is not None
    assert weights_digest(first) == weights_digest(other.get_weights())
    assert weights_digest(first) != weights_digest(keras.get_weights())


def test_weights_that_do_not_fit_are_named(saved: tuple[Any, Path], tmp_path: Path) -> None:
    network(7).save(tmp_path / "other.keras")
    with pytest.raises(ModelError, match=r"hidden/kernel \[64, 6\] gets a tensor \[64, 7\]") as got:
        build(name=str(saved[1]), weights=str(tmp_path / "other.keras"))
    assert "[model] weights" in str(got.value)
    with pytest.raises(ModelError, match="no such model and no such run"):
        build(name="mlp", weights=str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="no such file"):
        build(name="mlp", weights=str(tmp_path / "nothing.keras"))


@pytest.mark.parametrize("method", [Method.QAT, Method.PRUNE])
def test_weights_reach_models_of_every_method(method: Method, saved: tuple[Any, Path]) -> None:
    keras, path = saved
    plain = build(name=str(path))
    model = FederatedModel(plain.model_json, Optimization(method))
    before = model.manifest.digest
    model.start_from(keras.get_weights())
    assert model.manifest.digest == before
    assert weights_digest(model.plain().get_weights()) == weights_digest(keras.get_weights())


# ---- another run ----


def run_of(folder: Path, model: FederatedModel, given: bool) -> list[list[np.ndarray]]:
    """Write the database of a run with three versions after its first; return their weights."""
    folder.mkdir()
    store = Store(folder / "run.db")
    method = model.optimization.method
    settings = Settings.model_validate({"seed": 5, "optimization": {"method": method}})
    plan = make_plan(settings, model.task, model.model_json, model.manifest)
    open_run(
        settings, store, plan, model.manifest, model.get_weights() if given else None, 1, 0.0
    )  # fmt: skip
    weights = model.get_weights() if given else initial_weights(model.manifest, 5)
    versions = [weights]
    codec = parse_codec("float32")
    for number in (1, 2, 3):
        start = start_round(model.manifest, weights, 0.0)
        update = [np.full(w.shape, number / 8, np.float32) for w in start.weights]
        payload = encode_update(codec, start.manifest, update).payload
        weights = start.complete(apply_update(start.manifest, start.weights, update))
        record = ModelVersion(number, weights_digest(weights), "delta", "float32", 0.0, payload)
        with store.transaction():
            store.versions.add(record, weights, None)
        versions.append(weights)
    store.close()
    return versions


@pytest.mark.parametrize("method", [Method.NONE, Method.QAT])
def test_another_runs_versions(method: Method, saved: tuple[Any, Path], tmp_path: Path) -> None:
    own = FederatedModel(build(name=str(saved[1])).model_json, Optimization(method))
    versions = run_of(tmp_path / "other", own, given=False)
    digest = weights_digest(versions[1]).hex()
    for text, number in (("", 3), ("@2", 2), ("@0", 0), (f"@{digest[:8]}", 1), ("@3", 3)):
        model = FederatedModel(own.model_json)
        set_first_weights(model, f"{tmp_path / 'other'}{text}")
        own.set_weights(versions[number])
        assert weights_digest(model.get_weights()) == weights_digest(own.plain().get_weights())
    for text, why in (
        ("@9", "no version 9; it has 0 to 3"),
        ("@xyz", "neither"),
        ("@ab", "neither"),
    ):
        with pytest.raises(ModelError, match=why):
            set_first_weights(own, f"{tmp_path / 'other'}{text}")


def test_a_run_that_began_with_given_weights(saved: tuple[Any, Path], tmp_path: Path) -> None:
    own = build(name=str(saved[1]))
    versions = run_of(tmp_path / "other", own, given=True)
    set_first_weights(own, str(tmp_path / "other"))
    assert weights_digest(own.get_weights()) == weights_digest(versions[3])
    with pytest.raises(ModelError, match="only its newest version, 3"):
        set_first_weights(own, f"{tmp_path / 'other'}@1")


def test_settings_without_weights_keep_their_fingerprint() -> None:
    assert Settings().fingerprint == Settings.model_validate({"model": {"name": "cnn"}}).fingerprint
    given = Settings.model_validate({"model": {"weights": "runs/other"}})
    assert given.fingerprint != Settings().fingerprint
