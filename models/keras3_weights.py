"""Fills a tf_keras model with the weights that Keras 3 saved of the model it was converted from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from featherfed.models.errors import ModelError
from featherfed.models.hdf5 import read_tensor
from featherfed.models.keras3 import LAYERS, Config, is_model, layers_of

_INSIDE: dict[str, tuple[str, ...]] = {
    "GRU": ("cell",),
    "LSTM": ("cell",),
    "SimpleRNN": ("cell",),
    "MultiHeadAttention": ("query_dense", "key_dense", "value_dense", "output_dense"),
}
"""Where layers keep their variables, in Keras 2's order."""
_WITH_WEIGHTS = LAYERS - {"InputLayer"}


def fill_from_archive(model: Any, config: Config, file: Any, what: str) -> None:
    """Set the variables of `model` from an open model.weights.h5.

    `config`: the Keras 3 configuration that `model` was made of. Raises ModelError if a variable is
    missing or has another shape.
    """
    _fill_model(model, config, file, "layers", what)


def _fill_model(model: Any, config: Config, file: Any, path: str, what: str) -> None:
    taken: dict[str, int] = {}
    for layer in layers_of(config):
        if layer["class_name"] not in _WITH_WEIGHTS and not is_model(layer):
            continue  # inputs, and operations that compute a mask
        key = _snake_case(layer["class_name"])
        count = taken[key] = taken.get(key, -1) + 1
        own = f"{path}/{key}_{count}" if count else f"{path}/{key}"
        keras = model.get_layer(layer["config"]["name"])
        if is_model(layer):
            _fill_model(keras, layer, file, f"{own}/layers", what)
        else:
            _fill_layer(keras, layer, file, own, what)


def _fill_layer(keras: Any, layer: Config, file: Any, path: str, what: str) -> None:
    variables = keras.weights
    if not variables:
        return
    places = [
        f"{folder}/vars/{number}"
        for folder in _folders(layer, path)
        for number in range(_count(file, folder))
    ]
    if len(places) != len(variables):
        raise ModelError(
            f"{what}: layer {keras.name!r} has {len(places)} weights in {path}, and the model "
            f"needs {len(variables)}; save the model anew with Keras"
        )
    for place, variable in zip(places, variables, strict=True):
        variable.assign(read_tensor(file, place, tuple(variable.shape), what))


def _folders(layer: Config, path: str) -> Iterator[str]:
    """Yield the groups that hold a layer's variables."""
    kind, config = layer["class_name"], layer["config"]
    if kind == "TimeDistributed":
        yield from _folders(config["layer"], f"{path}/layer")
    elif kind == "Bidirectional":
        yield from _folders(config["layer"], f"{path}/forward_layer")
        yield from _folders(config["backward_layer"], f"{path}/backward_layer")
    else:
        yield from (f"{path}/{part}" for part in _INSIDE.get(kind, ()))
        if kind not in _INSIDE:
            yield path


def _count(file: Any, folder: str) -> int:
    """Return how many variables a group holds; they are numbered from 0."""
    group = file.get(f"{folder}/vars")
    return 0 if group is None else len(group)


def _snake_case(name: str) -> str:
    """Return a class name as Keras 3 writes it in its files: SimpleRNN -> simple_rnn."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
