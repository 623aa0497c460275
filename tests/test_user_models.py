"""Files of models from strangers: what is in them is data, bounded, and refused by name."""

# ruff: noqa: E402
from __future__ import annotations

import contextlib
import copy
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
pytest.importorskip("tensorflow_model_optimization")
keras = pytest.importorskip("keras", minversion="3")

import h5py

from featherfed.models import keras_archive
from featherfed.models.errors import ModelError
from featherfed.models.keras3 import to_keras2
from featherfed.models.model_files import load_file, load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning"),
]
L = keras.layers


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), L.BatchNormalization(), L.Dense(2)])
    path = tmp_path_factory.mktemp("files") / "good.keras"
    model.save(path)
    return path


def rewritten(good: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Write an archive whose files `change` has changed; None leaves a file out."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def with_config(good: Path, target: Path, change: Callable[[Any], None]) -> Path:
    def edit(name: str, content: bytes) -> bytes:
        if name != "config.json":
            return content
        config = json.loads(content)
        change(config)
        return json.dumps(config).encode()

    return rewritten(good, target, edit)


def with_weights(good: Path, target: Path, change: Callable[[Any], None]) -> Path:
    def edit(name: str, content: bytes) -> bytes:
        if name != "model.weights.h5":
            return content
        scratch = target.with_suffix(".h5")
        scratch.write_bytes(content)
        with h5py.File(scratch, "r+") as file:
            change(file)
        return scratch.read_bytes()

    return rewritten(good, target, edit)


def dense(config: Any) -> Any:
    return config["config"]["layers"][1]


def make_lambda(config: Any) -> None:
    dense(config).update(class_name="Lambda", config={"name": "evil", "function": "abc"})


def make_custom(config: Any) -> None:
    dense(config).update(module="os.path", registered_name="my>Dense")


def register(config: Any) -> None:
    dense(config)["registered_name"] = "my>Dense"


def activate(config: Any) -> None:
    dense(config)["config"]["activation"] = {"class_name": "function", "config": "system"}


def initialize(config: Any) -> None:
    dense(config)["config"]["kernel_initializer"]["class_name"] = "Evil"


def mix(config: Any) -> None:
    dense(config)["config"]["dtype"]["config"]["name"] = "mixed_float16"


def gate(config: Any) -> None:
    dense(config)["config"]["lora_rank"] = 4


def sharpen(config: Any) -> None:
    dense(config)["config"]["activation"] = "hard_sigmoid"


def subclass(config: Any) -> None:
    config.update(class_name="MyModel", registered_name="MyModel")


def swell(config: Any) -> None:
    dense(config)["config"]["units"] = 2**40


def nest(config: Any) -> None:
    inner: Any = 1
    for _ in range(300):
        inner = [inner]
    dense(config)["config"]["units"] = inner


def drop_layers(config: Any) -> None:
    config["config"]["layers"] = {"a": 1}


def drop_name(config: Any) -> None:
    del dense(config)["config"]["name"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (make_lambda, "layer 'evil': Lambda of Keras 3 has no counterpart"),
        (make_custom, "layer 'dense': os.path.Dense is not Keras' own"),
        (register, "registered name 'my>Dense' is not Keras' own"),
        (activate, "is not the same in Keras 2"),
        (initialize, "kernel_initializer: Evil has no counterpart"),
        (mix, "its dtype is 'mixed_float16'; make the model with float32"),
        (gate, "lora_rank = 4 has no counterpart"),
        (sharpen, "'hard_sigmoid' is not the same in Keras 2"),
        (subclass, "a class of its own"),
        (swell, "parameters|cannot build"),
        (nest, "cannot build|nested"),
        (drop_layers, "not one that Keras 3 writes|cannot build|no module"),
        (drop_name, "not one that Keras 3 writes"),
    ],
)
def test_what_is_not_listed_is_refused_by_name(
    change: Callable[[Any], None], why: str, good: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=why):
        load_file(with_config(good, tmp_path / "bad.keras", change))


def resize(file: Any) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = np.zeros((4, 9), np.float32)


def bomb(file: Any) -> None:
    """Give a variable so many values that they would not fit into memory; zeros take no room."""
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", (2**40,), "f4", chunks=(2**20,), compression="gzip")


def leave_out(file: Any) -> None:
    del file["layers/dense_1/vars/1"]


def link_out(file: Any) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.ExternalLink("/etc/passwd", "/data")


def link_in(file: Any) -> None:
    file["layers/more"] = h5py.SoftLink("/layers")


def loop(file: Any) -> None:
    file["layers/dense/again"] = file["layers"]


def lie_elsewhere(file: Any) -> None:
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", (4, 3), "f4", external=[("/etc/passwd", 0, 48)])


def poison(file: Any) -> None:
    file["layers/dense/vars/0"][0, 0] = np.nan


def count(file: Any) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = np.zeros((4, 3), np.int32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (resize, r"floats of shape \[4, 3\]"),
        (bomb, r"floats of shape \[4, 3\]"),
        (leave_out, "has 1 weights in layers/dense_1, and the model needs 2"),
        (link_out, "is a link to elsewhere"),
        (link_in, "is a link to elsewhere"),
        (loop, "nested too deeply|more than"),
        (lie_elsewhere, "the data of .* lie elsewhere"),
        (poison, "not finite"),
        (count, "int32"),
    ],
)
def test_weights_are_tensors_of_the_model_and_nothing_else(
    change: Callable[[Any], None], why: str, good: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=why):
        load_file(with_weights(good, tmp_path / "bad.keras", change))


def test_archives_that_cannot_be_read(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.keras"
    bad.write_bytes(b"no zip at all")
    with pytest.raises(ModelError, match=r"as a \.keras archive"):
        load_file(bad)
    bad.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"as a \.keras archive"):
        load_file(bad)
    rewritten(good, bad, lambda name, content: None if name.endswith("h5") else content)
    with pytest.raises(ModelError, match=r"holds no model\.weights\.h5"):
        load_file(bad)
    rewritten(good, bad, lambda name, content: b"{" if name == "config.json" else content)
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        load_file(bad)
    rewritten(good, bad, lambda name, content: content[:50] if name.endswith("h5") else content)
    with pytest.raises(ModelError, match="as HDF5"):
        load_file(bad)
    rewritten(
        good, bad, lambda name, content: b" " * (9 << 20) if name == "config.json" else content
    )
    assert bad.stat().st_size < 60_000  # a zip bomb
    with pytest.raises(ModelError, match="at most 8388608 are possible"):
        load_file(bad)
    monkeypatch.setattr(keras_archive, "MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(ModelError, match="at most 1000 are possible"):
        load_file(good)
    with pytest.raises(ModelError, match="no such file"):
        load_file(tmp_path / "none.keras")


def test_nothing_but_config_and_weights_is_read(good: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.keras"
    odd.write_bytes(good.read_bytes())
    with zipfile.ZipFile(odd, "a") as archive:
        archive.writestr("../../evil.py", "raise SystemExit")
        archive.writestr("assets/evil.pkl", b"cos\nsystem\n(S'touch /tmp/evil'\ntR.")
    assert load_file(odd).json == load_file(good).json
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.keras"]


def test_a_folder_and_files_without_a_model(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file.attrs["layer_names"] = ["dense"]
    with pytest.raises(ModelError, match="weights without a model"):
        load_file(tmp_path / "weights.h5")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(ModelError, match="holds no Keras 2 model"):
        load_model(str(tmp_path / "folder"), lambda: None)
    with pytest.raises(ModelError, match="cannot read model configuration"):
        load_model(str(tmp_path / "none.json"), lambda: None)


def test_any_change_of_a_configuration_converts_or_is_a_model_error(good: Path) -> None:
    with zipfile.ZipFile(good) as archive:
        config = json.loads(archive.read("config.json"))
    rng = np.random.default_rng(0)
    values = [None, [], {}, "x", -1, 1e300, True, {"class_name": "__keras_tensor__"}, [[]]]
    for _ in range(2000):
        changed = copy.deepcopy(config)
        node: Any = changed
        while isinstance(node, dict | list) and node:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = keys[rng.integers(len(keys))]
            if rng.random() < 0.3 or not isinstance(node[key], dict | list):
                node[key] = values[rng.integers(len(values))]
                break
            node = node[key]
        with contextlib.suppress(ModelError):
            to_keras2(changed)
