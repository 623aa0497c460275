"""A model's manifest: which of its variables are exchanged, under what rule, starting how."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import tf_keras

from featherfed.compression.manifest import Fill, Initial, Manifest, Role, TensorSpec, Uniform

_NONNEGATIVE = frozenset({"moving_variance", "variance", "moving_stddev", "renorm_stddev"})


def exchanged(model: Any) -> list[Any]:
    """Return the model's float32 variables: no integers, step counters or seeds."""
    return [variable for variable in model.weights if variable.dtype.name == "float32"]


def describe(model: Any, prunable: Collection[str]) -> tuple[Manifest, list[str]]:
    """Return the manifest of a fresh model, and the tensors whose start it cannot express.

    Call it before training: a constant start is read off the variables' values.
    `prunable` holds names of variables (with Keras' ":0").
    """
    initializers = _initializers(model)
    trainable = {id(variable) for variable in model.trainable_variables}
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
                role=_role(variable, id(variable) in trainable),
                initial=initial or Fill(0.0),
                prunable=variable.name in prunable,
            )
        )
    return Manifest(tuple(specs)), unseeded


def _role(variable: Any, trainable: bool) -> Role:
    if trainable:
        return Role.TRAINABLE
    last = variable.name.removesuffix(":0").rsplit("/", 1)[-1]
    return Role.NONNEGATIVE if last in _NONNEGATIVE else Role.STATISTIC


def _initializers(model: Any) -> dict[str, Any]:
    """Map "layer/kernel" to its initializer.

    By name, because a quantized layer's `kernel` is no longer its variable.
    """
    suffix = "_initializer"
    kernels = {kind: f"{kind}_kernel" for kind in ("depthwise", "pointwise", "recurrent")}

    def owner(attribute: str) -> str:
        name = attribute.removesuffix(suffix)
        return kernels.get(name, name)

    return {
        f"{layer.name}/{owner(attribute)}": getattr(layer, attribute)
        for layer in model.submodules
        if isinstance(layer, tf_keras.layers.Layer)
        for attribute in vars(layer)
        if attribute.endswith(suffix)
    }


def _initial(variable: Any, initializers: dict[str, Any]) -> Initial | None:
    name = "/".join(variable.name.removesuffix(":0").rsplit("/", 2)[-2:])
    limit = uniform_limit(initializers.get(name), tuple(variable.shape))
    if limit is not None:
        return Uniform(limit)
    values = variable.numpy()
    if values.size and np.all(values == values.flat[0]) and (values.size > 1 or _fixed(name)):
        return Fill(float(values.flat[0]))
    return None if values.size else Fill(0.0)


def _fixed(name: str) -> bool:
    """A single value looks constant even if it was drawn: only kernels are drawn."""
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
    """Keras' rule for every kernel, depthwise kernels included: the last two axes are in, out."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field
