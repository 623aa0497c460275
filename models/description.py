"""Describes a model as a manifest: its exchanged variables, their roles and initial values."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import tf_keras

from featherfed.compression.exchange.manifest import (
    Fill,
    Initial,
    Manifest,
    Role,
    TensorSpec,
    Uniform,
)

_NORMALIZING = (
    tf_keras.layers.BatchNormalization,
    tf_keras.layers.experimental.SyncBatchNormalization,
    tf_keras.layers.Normalization,
)
_AVERAGING = _NORMALIZING[:2]
_NONNEGATIVE = frozenset({"moving_variance", "variance", "moving_stddev", "renorm_stddev"})


def exchanged(model: Any) -> list[Any]:
    """Return the model's float32 variables: no integers, step counters or seeds."""
    return [variable for variable in model.weights if variable.dtype.name == "float32"]


def describe(model: Any, prunable: Collection[str]) -> tuple[Manifest, list[str]]:
    """Return the manifest of a fresh model, and the tensors whose initial values it cannot express.

    Call it before training: constant initial values are read off the variables.
    `prunable` holds names of variables (with Keras' ":0").
    """
    initializers = _initializers(model)
    trainable = {id(variable) for variable in model.trainable_variables}
    still, momenta = _still_statistics(model), _momenta(model)
    specs, unseeded, taken = [], [], set[str]()
    for variable in exchanged(model):
        name = base = variable.name.removesuffix(":0")
        while name in taken:
            name = f"{base}_{len(taken)}"
        taken.add(name)
        initial = _initial(variable, initializers)
        if initial is None:
            unseeded.append(name)
        specs.append(
            TensorSpec(
                name=name,
                shape=tuple(int(size) for size in variable.shape),
                role=_role(variable, id(variable) in trainable, id(variable) in still),
                initial=initial or Fill(0.0),
                prunable=variable.name in prunable,
                momentum=momenta.get(id(variable), 0.0),
            )
        )
    return Manifest(tuple(specs)), unseeded


def _role(variable: Any, trainable: bool, still: bool) -> Role:
    if trainable:
        return Role.TRAINABLE
    if variable.trainable or still:  # made to be trained, but its layer is frozen
        return Role.FROZEN
    last = variable.name.removesuffix(":0").rsplit("/", 1)[-1]
    return Role.NONNEGATIVE if last in _NONNEGATIVE else Role.STATISTIC


def _still_statistics(model: Any) -> set[int]:
    """Return the ids of the statistics of frozen layers that compute as in inference.

    Other layers go on updating theirs, such as the ranges of a quantized layer.
    """
    return {
        id(variable)
        for layer in model.submodules
        if isinstance(layer, _NORMALIZING) and not layer.trainable
        for variable in layer.weights
    }


def _momenta(model: Any) -> dict[int, float]:
    """Return by variable's id the momentum of the moving averages of batch normalisation."""
    return {
        id(variable): float(layer.momentum)
        for layer in model.submodules
        if isinstance(layer, _AVERAGING) and layer.trainable and 0 < layer.momentum < 1
        for variable in (layer.moving_mean, layer.moving_variance)
    }


def _initializers(model: Any) -> dict[int | str, Any]:
    """Map a variable's id, and "layer/kernel", to its initializer.

    The name is for quantized layers, whose `kernel` is no longer their variable; the id for
    wrappers, which give their own name to the variables of the layer inside.
    """
    suffix = "_initializer"
    kernels = {kind: f"{kind}_kernel" for kind in ("depthwise", "pointwise", "recurrent")}
    found: dict[int | str, Any] = {}
    for layer in model.submodules:
        if not isinstance(layer, tf_keras.layers.Layer):
            continue
        for attribute in [name for name in vars(layer) if name.endswith(suffix)]:
            name = attribute.removesuffix(suffix)
            name = kernels.get(name, name)
            initializer = getattr(layer, attribute)
            found[f"{layer.name}/{name}"] = initializer
            found[id(getattr(layer, name, layer))] = initializer
    return found


def _initial(variable: Any, initializers: dict[int | str, Any]) -> Initial | None:
    name = "/".join(variable.name.removesuffix(":0").rsplit("/", 2)[-2:])
    initializer = initializers.get(id(variable), initializers.get(name))
    limit = uniform_limit(initializer, tuple(variable.shape))
    if limit is not None:
        return Uniform(limit)
    values = variable.numpy()
    if values.size and np.all(values == values.flat[0]) and (values.size > 1 or _is_constant(name)):
        return Fill(float(values.flat[0]))
    return None if values.size else Fill(0.0)


def _is_constant(name: str) -> bool:
    """Return whether a single value is a constant: only those of kernels are drawn at random."""
    return "kernel" not in name.rsplit("/", 1)[-1] or name.endswith(("_min", "_max"))


def uniform_limit(initializer: Any, shape: tuple[int, ...]) -> float | None:
    """Return the float32 limit of a symmetric uniform initializer, None if it is not one."""
    kinds = tf_keras.initializers
    if isinstance(initializer, kinds.RandomUniform):
        low, high = initializer.minval, initializer.maxval
        return float(np.float32(high)) if low == -high else None
    if not isinstance(initializer, kinds.VarianceScaling):
        return None
    if initializer.distribution != "uniform":
        return None
    fan_in, fan_out = _fans(shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out}.get(initializer.mode, (fan_in + fan_out) / 2)
    return float(np.float32(math.sqrt(3.0 * initializer.scale / max(1.0, fan))))


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return fan-in and fan-out by Keras' rule: the last two axes of any kernel are in and out."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field
