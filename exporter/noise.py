"""Layers that are random in training: dropout and noise.

Their random numbers are inputs of the step, uniform in [0, 1).
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from featherfed.exporter import ops
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.handlers import handles
from featherfed.exporter.ops import Tensor


@handles("Dropout")
def _dropout(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    shape = [given or own for given, own in zip(layer.noise_shape or x.shape, x.shape, strict=True)]
    return drop(x, tuple(shape), layer.rate, forward)


@handles("SpatialDropout1D", "SpatialDropout2D")
def _spatial_dropout(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    return drop(x, (x.shape[0], *[1] * (len(x.shape) - 2), x.shape[-1]), layer.rate, forward)


def drop(x: Tensor, shape: tuple[int, ...], rate: float, forward: ForwardPass) -> Tensor:
    """Set a share `rate` of x to zero and scale up the rest; one draw for each cell of `shape`."""
    if not rate or not forward.training:
        return x
    kept = tf.cast(tf.greater_equal(forward.noise(shape), rate), tf.float32)
    return x * ops.broadcast(kept * (1.0 / (1.0 - rate)), x.shape)


@handles("GaussianNoise")
def _gaussian_noise(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    if not layer.stddev or not forward.training:
        return x
    return x + float(layer.stddev) * _normal(x, forward)


@handles("GaussianDropout")
def _gaussian_dropout(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    if not 0 < layer.rate < 1 or not forward.training:
        return x
    return x * (1.0 + math.sqrt(layer.rate / (1.0 - layer.rate)) * _normal(x, forward))


def _normal(x: Tensor, forward: ForwardPass) -> Tensor:
    """Return standard normal numbers of the shape of x, by Box and Muller's transform."""
    shape = tuple(x.shape)
    radius = tf.sqrt(-2.0 * tf.math.log(1.0 - forward.noise(shape)))
    return radius * tf.cos(2.0 * math.pi * forward.noise(shape))
