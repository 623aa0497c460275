"""Reads the user's own model: an object, a function's, or one in a file that Keras 2 or 3 wrote.

Files are data here: a configuration that passes `serialization.from_json`, and tensors. Nothing in
them is run. A function, `module:function`, is the user's own code and is called.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from featherfed.compression.arrays import Array
from featherfed.models.description import exchanged
from featherfed.models.errors import ModelError
from featherfed.models.hdf5 import open_hdf5, read_tensor
from featherfed.models.keras2 import with_modules
from featherfed.models.keras3 import is_keras3, to_keras2
from featherfed.models.keras3_weights import fill_from_archive
from featherfed.models.keras_archive import MAX_CONFIG_BYTES, KerasArchive
from featherfed.models.serialization import from_json, to_json

Config = dict[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model as Keras 2 JSON and, if it came with any, its weights.

    `weights`: the float32 variables of the model that `serialization.from_json` builds of `json`,
    in its order; None: they are drawn from the run's seed.
    """

    json: str
    weights: list[Array] | None = None


def load_model(name: str, build: Callable[[], Any]) -> LoadedModel:
    """Return the model that `[model] name` of a run file says.

    `build`: makes the built-in model of this name. Raises ModelError if the model cannot be read or
    holds what is not allowed.
    """
    path = Path(name)
    if ":" in name and not path.exists():
        return _of_function(name)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return LoadedModel(_json_of(_parse(_text_of(path), name)))
    if not is_model_file(path):
        return LoadedModel(to_json(build()))
    return load_file(path)


def is_model_file(path: Path) -> bool:
    """Whether a path is, by its name, of a model with weights: .keras, .h5 or a SavedModel."""
    return path.suffix.lower() in (".keras", ".h5", ".hdf5") or (path / "saved_model.pb").exists()


def load_file(path: Path) -> LoadedModel:
    """Return the model in a .keras or .h5 file or a SavedModel folder, with its weights.

    Raises ModelError.
    """
    if not path.exists():
        raise ModelError(f"cannot read the model {path}: there is no such file")
    if path.is_dir():
        return _loaded(*_of_saved_model(path))
    if path.suffix.lower() == ".keras":
        return _loaded(*_of_archive(path))
    return _loaded(*_of_hdf5(path))


def _loaded(text: str, model: Any) -> LoadedModel:
    return LoadedModel(text, [variable.numpy() for variable in exchanged(model)])


def _json_of(config: Config) -> str:
    """Return the checked Keras 2 JSON of a configuration that Keras 2 or 3 wrote."""
    config = to_keras2(config) if is_keras3(config) else with_modules(config)
    return to_json(from_json(json.dumps(config)))


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
        return path.read_text("utf-8")
    except OSError as error:
        raise ModelError(f"cannot read model configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is no text: {error}") from error


def _parse(text: str | bytes, what: str) -> Config:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what}: the model is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{what}: the model must be a Keras model's to_json()")
    return config


# ---- a function ----


def _of_function(name: str) -> LoadedModel:
    """Return what the user's function gives, with the weights that it has."""
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:  # as `python -m` does: modules beside the run file's command
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"there is no function {function_name!r} in a module {module_name!r} ({error}); the "
            "model is MODULE:FUNCTION, importable from the folder in which featherfed runs"
        ) from error
    # Names that Keras gives by itself are the same each time.
    tf_keras.backend.reset_uids()
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.utils.clear_session()
    try:
        model = function()
    except Exception as error:  # the user's code raises what it likes
        raise ModelError(f"{name} raised {type(error).__name__}: {str(error)[:300]}") from error
    if not is_model(model):
        raise ModelError(
            f"{name} gave {type(model).__name__}; return a tf_keras or Keras 3 model from it"
        )
    return load_object(model)


def is_model(value: Any) -> bool:
    """Whether a value is a tf_keras or Keras 3 model."""
    return isinstance(value, tf_keras.Model) or _is_keras3_model(value)


def load_object(model: Any) -> LoadedModel:
    """Return a tf_keras or Keras 3 model with the weights that it has; it stays as it is.

    Raises ModelError if it is not built, or holds what is not allowed.
    """
    if not model.built:
        raise ModelError(f"the model {model.name!r} has no input shape; begin it with an Input")
    if isinstance(model, tf_keras.Model):
        text = to_json(model)
        return LoadedModel(text, [variable.numpy() for variable in exchanged(model)])
    # By way of a file, whose conversion is tested layer by layer.
    with tempfile.TemporaryDirectory(prefix="featherfed-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return load_file(path)


def _is_keras3_model(model: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


# ---- files ----


def _of_archive(path: Path) -> tuple[str, Any]:
    archive = KerasArchive(path)
    config = archive.config()
    text = _json_of(config)
    model = from_json(text)
    with archive.weights() as file, open_hdf5(file, str(path)) as opened:
        if is_keras3(config):
            fill_from_archive(model, config, opened, str(path))
        else:
            _load_keras2(model, file, path)
    return text, model


def _load_keras2(model: Any, weights: Path, path: Path) -> None:
    try:
        model.load_weights(weights)
    except Exception as error:  # Keras raises whatever its layers raise
        raise ModelError(f"{path}: its weights do not fit its model: {str(error)[:300]}") from error


def _of_hdf5(path: Path) -> tuple[str, Any]:
    with open_hdf5(path, str(path)) as opened:
        found = opened.attrs.get("model_config")
        if found is None or "model_weights" not in opened:
            raise ModelError(
                f"{path} holds weights without a model; save the whole model with "
                "model.save('model.keras')"
            )
        config = _parse(found, str(path))
        text = _json_of(config)
        model = from_json(text)
        group = opened["model_weights"]
        for layer in _in_order(model, config):
            _fill(layer, group, config, str(path))
    return text, model


def _fill(layer: Any, group: Any, config: Config, what: str) -> None:
    """Set a layer's variables from its group, whose names are in the order of Keras 2's weights."""
    variables = _legacy_order(layer, _config_of(config, layer.name))
    if not variables:
        return
    own = group.get(layer.name)
    names = [] if own is None else _names(own)
    if len(names) != len(variables):
        raise ModelError(
            f"{what}: layer {layer.name!r} has {len(names)} weights in the file, and the model "
            f"needs {len(variables)}; save the model anew with Keras"
        )
    for name, variable in zip(names, variables, strict=True):
        variable.assign(read_tensor(own, name, tuple(variable.shape), what))


def _names(group: Any) -> list[str]:
    """Return a group's `weight_names`, which long lists have in parts."""
    names = list(group.attrs.get("weight_names", ()))
    part = 0
    while not names or part:
        more = group.attrs.get(f"weight_names{part}")
        if more is None:
            break
        names += list(more)
        part += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _in_order(model: Any, config: Config) -> list[Any]:
    """Return a model's layers in the order of its configuration, which Keras saves them in."""
    names = [layer["config"]["name"] for layer in config["config"]["layers"]]
    known = {layer.name: layer for layer in model.layers}
    return [known[name] for name in names if name in known]


def _config_of(config: Config, name: str) -> Config:
    return next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == name)


def _legacy_order(layer: Any, config: Config) -> list[Any]:
    """Return a layer's variables as .h5 files order them: those to train, then all others."""
    if not isinstance(layer, tf_keras.Model):
        return [*layer.trainable_weights, *layer.non_trainable_weights]
    inner = [_legacy_order(own, _config_of(config, own.name)) for own in _in_order(layer, config)]
    variables = [variable for own in inner for variable in own]
    trained = {id(variable) for variable in layer.trainable_weights}
    return sorted(variables, key=lambda variable: id(variable) not in trained)


def _of_saved_model(path: Path) -> tuple[str, Any]:
    """Return a SavedModel's Keras 2 model, from its configuration and checkpoint alone."""
    from google.protobuf.message import DecodeError
    from tf_keras.protobuf import saved_metadata_pb2

    try:
        metadata = saved_metadata_pb2.SavedMetadata.FromString(
            (path / "keras_metadata.pb").read_bytes()
        )
        root = next(node for node in metadata.nodes if node.node_path == "root")
        config = _parse(root.metadata, str(path)).get("model_config")
    except (OSError, DecodeError, StopIteration) as error:
        raise ModelError(
            f"{path} holds no Keras 2 model ({type(error).__name__}): an export for serving has no "
            "architecture to train; save the model with model.save('model.keras')"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no Sequential or functional model; save one as .keras")
    text = _json_of(config)
    model = from_json(text)
    try:
        status = tf.train.Checkpoint(root=model).read(str(path / "variables" / "variables"))
        status.assert_existing_objects_matched().expect_partial()
    except Exception as error:  # TensorFlow raises its own kinds for each damage
        raise ModelError(f"{path}: its weights do not fit its model: {str(error)[:300]}") from error
    return text, model
