"""Finds the masks that Keras 3 writes into a configuration, and Keras 2 works out by itself.

After an Embedding or a Masking layer, a functional model of Keras 3 has the operations that compute
the mask as layers of their own, NotEqual and Any, and passes their result on as `mask`.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_OPERATIONS = "keras.src.ops.numpy"


def implied_masks(layers: list[Config]) -> frozenset[str]:
    """Return the names of the layers that compute what an Embedding or Masking layer masks anyhow.

    A mask of the user's own, of other values or another tensor, is none of them.
    """
    sources = [source for layer in layers for source in _masked_by(layer)]
    compared = {}
    for layer in _operations(layers, "NotEqual"):
        for node in layer["inbound_nodes"]:
            tensor, value = node["args"]
            compared[layer["name"]] = (_history(tensor), value)
    whole = {name for name, what in compared.items() if what in sources}
    steps = {layer["name"] for layer in _operations(layers, "Any") if _reduces(layer, whole)}
    return frozenset(whole | steps)


def _reduces(layer: Config, compared: set[str]) -> bool:
    """Whether an Any makes a mask of steps from one of values."""
    config = layer["config"]
    of = [_history(node["args"][0]) or [None] for node in layer["inbound_nodes"]]
    along_last = config.get("axis") == -1 and not config.get("keepdims")
    return along_last and {history[0] for history in of} <= compared


def _operations(layers: list[Config], kind: str) -> list[Config]:
    return [
        layer
        for layer in layers
        if layer["class_name"] == kind and layer.get("module") == _OPERATIONS
    ]


def _masked_by(layer: Config) -> list[tuple[Any, Any]]:
    """Return the tensors that a masking layer compares, each with what is masked."""
    kind, config = layer["class_name"], layer["config"]
    if kind == "Masking":
        value = config["mask_value"]
    elif kind == "Embedding" and config.get("mask_zero"):
        value = 0
    else:
        return []
    return [(_history(node["args"][0]), value) for node in layer["inbound_nodes"]]


def _history(tensor: Any) -> Any:
    """Return the layer, node and number of a tensor; None if it is a constant."""
    if not isinstance(tensor, dict) or tensor.get("class_name") != "__keras_tensor__":
        return None
    return tensor["config"]["keras_history"]


def is_of(value: Any, masks: frozenset[str]) -> bool:
    """Whether an argument of a call is one of `masks`."""
    history = _history(value)
    return history is not None and history[0] in masks
