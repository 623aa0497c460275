"""Keras' activations with gradients that TFLite has operators for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from featherfed.exporter.errors import ExportError
from featherfed.exporter.ops import Tensor, is_positive, with_gradient

Function = Callable[[Tensor], Tensor]
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017


def _with_slope(value: Function, slope: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Return a function whose derivative is `slope` of input and output."""

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Function]:
        y = value(x)
        return y, lambda dy: dy * slope(x, y)

    return apply


def _positive(x: Tensor) -> Tensor:
    return tf.cast(tf.greater(x, 0.0), tf.float32)


def rectifier(slope: float = 0.0, threshold: float = 0.0, maximum: float | None = None) -> Function:
    """Return max(x, 0), with Keras' ReLU's `negative_slope`, `threshold` and `max_value`."""
    if not slope and not threshold and maximum is None:
        return _with_slope(tf.nn.relu, lambda x, y: is_positive(y))
    top = math.inf if maximum is None else maximum

    def value(x: Tensor) -> Tensor:
        above = tf.cast(tf.greater_equal(x, threshold), tf.float32) if threshold else _positive(x)
        y = above * x + (1.0 - above) * (slope * (x - threshold))
        return tf.minimum(y, top) if maximum is not None else y

    def derivative(x: Tensor, y: Tensor) -> Tensor:
        above = tf.cast(tf.greater(x, threshold), tf.float32)
        below_top = tf.cast(tf.less(x, top), tf.float32) if maximum is not None else 1.0
        return above * below_top + (1.0 - above) * slope

    return _with_slope(value, derivative)


def elu(alpha: float = 1.0) -> Function:
    """Return x, or alpha * (exp(x) - 1) below zero."""

    def value(x: Tensor) -> Tensor:
        low = alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0)
        return tf.nn.relu(x) + low

    def slope(x: Tensor, y: Tensor) -> Tensor:
        above = _positive(x)
        return above + (1.0 - above) * (y + alpha)

    return _with_slope(value, slope)


def _selu(x: Tensor) -> Tensor:
    return _SELU_SCALE * elu(_SELU_ALPHA)(x)


def _softplus(x: Tensor) -> Tensor:
    # log(1 + exp(x)) that neither overflows nor loses small values
    return tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x)))


def _mish_slope(x: Tensor, y: Tensor) -> Tensor:
    inner = tf.tanh(_softplus(x))
    return inner + x * tf.sigmoid(x) * (1.0 - tf.square(inner))


def _gelu_slope(x: Tensor, y: Tensor) -> Tensor:
    density = tf.exp(-0.5 * tf.square(x)) / math.sqrt(2 * math.pi)
    return 0.5 * (1.0 + _erf(x / math.sqrt(2))) + x * density


def _erf(x: Tensor) -> Tensor:
    # Abramowitz and Stegun 7.1.26 is good to 1.5e-7; TFLite has no erf of its own.
    t = 1.0 / (1.0 + 0.3275911 * tf.abs(x))
    series = 1.061405429
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + factor
    return tf.sign(x) * (1.0 - series * t * tf.exp(-tf.square(x)))


sigmoid: Function = _with_slope(tf.sigmoid, lambda x, y: y * (1.0 - y))
tanh: Function = _with_slope(tf.tanh, lambda x, y: 1.0 - tf.square(y))
_swish = _with_slope(lambda x: x * tf.sigmoid(x), lambda x, y: y + tf.sigmoid(x) * (1.0 - y))
_hard_sigmoid = _with_slope(
    lambda x: tf.minimum(tf.maximum(0.2 * x + 0.5, 0.0), 1.0),
    lambda x, y: 0.2 * tf.cast(tf.logical_and(tf.greater(y, 0.0), tf.less(y, 1.0)), tf.float32),
)


@with_gradient
def softmax(x: Tensor) -> Any:
    """Return the softmax over the last axis."""
    y = tf.nn.softmax(x)
    return y, lambda dy: (dy - tf.reduce_sum(dy * y, axis=-1, keepdims=True)) * y


ACTIVATIONS: dict[str, Function] = {
    "linear": lambda x: x,
    "relu": rectifier(),
    "elu": elu(),
    "selu": _selu,
    "sigmoid": sigmoid,
    "hard_sigmoid": _hard_sigmoid,
    "tanh": tanh,
    "softmax": softmax,
    "softplus": _with_slope(_softplus, lambda x, y: tf.sigmoid(x)),
    "softsign": _with_slope(
        lambda x: x / (1.0 + tf.abs(x)), lambda x, y: tf.square(1.0 / (1.0 + tf.abs(x)))
    ),
    "swish": _swish,
    "silu": _swish,
    "exponential": _with_slope(tf.exp, lambda x, y: y),
    "mish": _with_slope(lambda x: x * tf.tanh(_softplus(x)), _mish_slope),
    "gelu": _with_slope(lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2))), _gelu_slope),
}
"""By the name of the function in tf_keras.activations."""


def activation(name: str, layer: str) -> Function:
    """Return an activation by its Keras name; raises ExportError that names the layer."""
    if name not in ACTIVATIONS:
        raise ExportError(
            f"layer {layer!r}: the activation {name!r} has no training step for LiteRT; use one of "
            f"{', '.join(sorted(ACTIVATIONS))}, or Keras clients (--runtime keras)"
        )
    return ACTIVATIONS[name]
