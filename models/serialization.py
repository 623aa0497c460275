"""Models as JSON, and back from a peer that is not trusted.

Keras resolves a "module" by importing it and a class by name, some layers run stored code or read
files. So the text is walked first and everything that is not on the list is refused; Keras then
gets the very objects that were checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from featherfed.models.errors import ModelError

MAX_JSON_BYTES = 1 << 20
MAX_PARAMETERS = 1 << 26
"""256 MiB of float32: a model beyond this is refused before its variables are allocated."""
MAX_DEPTH = 64

_PACKAGES = ("keras", "tf_keras")
_MODELS = frozenset({"Sequential", "Functional"})
_MODEL_MODULES = frozenset(
    f"{package}{path}"
    for package in _PACKAGES
    for path in ("", ".models", ".src.engine.functional", ".src.engine.sequential")
)
# Lambda runs code, the lookups and TextVectorization read the file they are told, and the base
# classes do nothing useful by themselves.
_REFUSED = frozenset(
    {"Lambda", "TFOpLambda", "SlicingOpLambda", "ClassMethod", "TFSMLayer", "DenseFeatures"}
    | {"StringLookup", "IntegerLookup", "TextVectorization"}
    | {"Layer", "Wrapper", "AbstractRNNCell", "InputSpec"}
)
_ACTIVATION_KEYS = frozenset({"activation", "recurrent_activation"})


def _public_classes(module: Any, base: type) -> frozenset[str]:
    return frozenset(
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and name not in _REFUSED
    )


_ACTIVATIONS = frozenset(
    name
    for name, value in vars(tf_keras.activations).items()
    if callable(value) and not name.startswith("_") and name not in {"get", "deserialize"}
) - {"serialize"}
_CLASSES: dict[str, frozenset[str]] = {
    "layers": _public_classes(tf_keras.layers, tf_keras.layers.Layer),
    "initializers": _public_classes(tf_keras.initializers, tf_keras.initializers.Initializer),
    "regularizers": _public_classes(tf_keras.regularizers, tf_keras.regularizers.Regularizer),
    "constraints": _public_classes(tf_keras.constraints, tf_keras.constraints.Constraint),
}


def module_of(name: str, key: str = "") -> str | None:
    """Return the module of a Keras class, None if the class is not allowed.

    `key`: where a configuration has it, as some names are both a layer's and an initializer's.
    """
    if name in _MODELS:
        return "keras"
    kinds = [kind for kind in _CLASSES if key.endswith(f"_{kind.removesuffix('s')}")]
    kind = next((kind for kind in kinds or _CLASSES if name in _CLASSES[kind]), None)
    return kind and f"keras.{kind}"


def to_json(model: Any) -> str:
    """Return the architecture of a tf_keras Sequential or functional model, without weights."""
    return str(model.to_json())


def with_input_dtypes(text: str, dtypes: Sequence[str]) -> str:
    """Return a model's JSON whose input layers have these dtypes, in the model's order.

    Keras makes inputs float32 unless told otherwise, and floats hold no large tokens in int8 files.
    """
    config = _parse(text)
    layers = [item for item in config.get("config", {}).get("layers", []) if _is_input(item)]
    order = _input_names(config)
    if order and sorted(order) == sorted(item["config"].get("name") for item in layers):
        layers.sort(key=lambda item: order.index(item["config"]["name"]))
    for item, dtype in zip(layers, dtypes, strict=False):
        item["config"]["dtype"] = dtype
    return json.dumps(config)


def _is_input(item: Any) -> bool:
    found = isinstance(item, dict) and item.get("class_name") == "InputLayer"
    return found and isinstance(item.get("config"), dict)


def _input_names(config: dict[str, Any]) -> list[Any]:
    """Return the names of a functional model's inputs in order, none for a sequential model."""
    given = config["config"].get("input_layers", [])
    if given and not isinstance(given[0], list):  # a single one
        given = [given]
    return [item[0] for item in given if isinstance(item, list) and item]


def from_json(text: str) -> Any:
    """Return a new uncompiled, built tf_keras model from text that may be hostile.

    Raises ModelError, naming the layer, if the text is larger than MAX_JSON_BYTES, holds anything
    but Keras' own layers, initializers, regularizers, constraints and activations, has more than
    MAX_PARAMETERS parameters, or has trainable variables that are not float32.
    """
    config = _parse(text)
    _check(config, "model", top=True)
    _check_size(config)
    # Numbering starts afresh, so that automatic names (gru_cell) are the same on every machine.
    tf_keras.backend.reset_uids()
    model = _build(config)
    _freeze(model)
    for variable in model.trainable_variables:
        if variable.dtype != tf.float32:
            raise ModelError(
                f"{variable.name!r} is {variable.dtype.name}; set the layer's dtype to float32"
            )
    return model


def _freeze(model: Any) -> None:
    """Freeze all that is inside of a frozen layer: its normalisations would train on otherwise."""
    for layer in model.submodules:
        if isinstance(layer, tf_keras.layers.Layer) and not layer.trainable:
            layer.trainable = False  # Keras' setter passes it on


def _parse(text: str) -> dict[str, Any]:
    if len(text.encode()) > MAX_JSON_BYTES:
        raise ModelError(f"the model's JSON is larger than {MAX_JSON_BYTES} bytes")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the model is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("class_name") not in _MODELS:
        raise ModelError("the model must be a Keras Sequential or functional model's to_json()")
    return config


def _check(node: Any, where: str, *, top: bool = False, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ModelError(f"{where}: nested deeper than {MAX_DEPTH}")
    if isinstance(node, list):
        for item in node:
            _check(item, where, depth=depth + 1)
    if not isinstance(node, dict):
        return
    where = _name_of(node, where)
    if not top and ("class_name" in node or "module" in node or "registered_name" in node):
        _check_object(node, where)
    for key, value in node.items():
        if key == "compile_config":
            raise ModelError(f"{where}: remove compile_config; the plan says how to train")
        if key in _ACTIVATION_KEYS and isinstance(value, str) and value not in _ACTIVATIONS:
            raise ModelError(f"{where}: unknown activation {value!r}; use a Keras activation")
        _check(value, where, depth=depth + 1)


def _name_of(node: dict[str, Any], where: str) -> str:
    config = node.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    return f"layer {name!r}" if isinstance(name, str) and "class_name" in node else where


def _check_object(node: dict[str, Any], where: str) -> None:
    module, name = node.get("module"), node.get("class_name")
    if not isinstance(module, str) or not isinstance(name, str):
        raise ModelError(f"{where}: {name!r} has no module; write the model with to_json()")
    if node.get("registered_name") not in (None, name):
        raise ModelError(
            f"{where}: registered name {node['registered_name']!r} is not Keras' own; "
            "use built-in Keras classes only"
        )
    if module in _MODEL_MODULES and name in _MODELS:
        return
    if name == "function" and module == "builtins" and node.get("config") in _ACTIVATIONS:
        return
    package, _, kind = module.partition(".")
    if package not in _PACKAGES or name not in _CLASSES.get(kind, frozenset()):
        raise ModelError(
            f"{where}: {module}.{name} is not allowed; use the layers of tf_keras.layers "
            "that hold no code and read no files (no Lambda, no operators on tensors)"
        )


def _check_size(config: dict[str, Any]) -> None:
    # In a graph, variables are only described: nothing is allocated yet.
    with tf.Graph().as_default():
        model = _build(config)
        count = sum(math.prod(variable.shape) for variable in model.weights)
    if count > MAX_PARAMETERS:
        raise ModelError(f"the model has {count} parameters; at most {MAX_PARAMETERS} are allowed")


def _build(config: dict[str, Any]) -> Any:
    try:
        model = tf_keras.models.model_from_json(json.dumps(config))
    except Exception as error:  # Keras raises whatever its layers raise on a nonsense config
        raise ModelError(f"Keras cannot build the model: {str(error)[:300]}") from error
    if not model.built:
        raise ModelError("the model has no input shape; begin it with an InputLayer")
    return model
