"""Keras layers as functions from input tensors and the forward pass to the output in training.

Those without a module of their own are here; importing this module registers all of them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from featherfed.exporter import attention, convolutions, noise, ops, pooling, sequences, shapes
from featherfed.exporter.activations import elu, rectifier
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.handlers import cannot, handles, known_layers, run_layer
from featherfed.exporter.masks import mask_of
from featherfed.exporter.ops import Tensor

__all__ = ["is_model", "known_layers", "run_layer"]
_REGISTERED = (attention, convolutions, noise, pooling, sequences, shapes)
"""Modules that register their handlers when they are imported."""


@handles("InputLayer")
def _input(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return inputs[0]


@handles("Dense")
def _dense(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    flat = tf.reshape(x, [-1, x.shape[-1]])
    y = ops.matmul(flat, forward.value(layer.kernel))
    return forward.finish(layer, tf.reshape(y, [*x.shape[:-1], layer.units]))


# ---- normalisation ----


@handles("BatchNormalization")
def _batch_norm(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    if _axes(layer, x) != [len(x.shape) - 1] or getattr(layer, "renorm", False):
        raise cannot(layer, "another axis than the last, or renorm,", "normalise the last axis")
    if not (layer.trainable and forward.training):
        return _frozen_norm(layer, x, forward)
    y, mean, variance, count = ops.batch_norm(x, forward.importance, layer.epsilon)
    if layer.fused:  # Keras 2 takes the unbiased variance here, and only here
        variance = variance * count / tf.maximum(count - 1.0, 1.0)
    forward.set_moving_average(layer.moving_mean, mean, layer.momentum)
    forward.set_moving_average(layer.moving_variance, variance, layer.momentum)
    return _affine(layer, y, forward)


def _frozen_norm(layer: Any, x: Tensor, forward: ForwardPass) -> Tensor:
    inverse = tf.math.rsqrt(forward.value(layer.moving_variance) + layer.epsilon)
    centred = ops.add_bias(x, -forward.value(layer.moving_mean))
    return _affine(layer, ops.scale(centred, inverse), forward)


@handles("LayerNormalization")
def _layer_norm(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    axes = sorted(_axes(layer, x))
    rank = len(x.shape)
    if axes != list(range(rank - len(axes), rank)) or 0 in axes:
        raise cannot(layer, "other axes than the last ones", "normalise the last axis")
    y = ops.layer_norm(x, len(axes), layer.epsilon)
    shape = y.shape
    wide = tf.reshape(y, [shape[0], *shape[1 : rank - len(axes)], -1])
    return tf.reshape(_affine(layer, wide, forward), shape)


def _axes(layer: Any, x: Tensor) -> list[int]:
    axis = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return [int(a) % len(x.shape) for a in axis]


def _affine(layer: Any, y: Tensor, forward: ForwardPass) -> Tensor:
    if layer.scale:
        y = ops.scale(y, tf.reshape(forward.value(layer.gamma), [-1]))
    if layer.center:
        y = ops.add_bias(y, tf.reshape(forward.value(layer.beta), [-1]))
    return y


# ---- sums and products ----


@handles("Rescaling")
def _rescaling(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return inputs[0] * float(layer.scale) + float(layer.offset)


@handles("Concatenate")
def _concatenate(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return tf.concat(inputs, axis=layer.axis % len(inputs[0].shape))


@handles("Add")
def _add(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    inputs = _of_one_shape(inputs)
    return tf.add_n(inputs) if len(inputs) > 2 else inputs[0] + inputs[1]


@handles("Subtract")
def _subtract(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    first, second = _of_one_shape(inputs)
    return first - second


@handles("Multiply")
def _multiply(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    product, *others = _of_one_shape(inputs)
    for x in others:
        product = product * x
    return product


@handles("Average")
def _average(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _add(layer, inputs, forward) / float(len(inputs))


def _of_one_shape(inputs: list[Tensor]) -> list[Tensor]:
    """Return inputs [B, ...] in the shape that they have together, by Keras' rules."""
    axes = max(len(x.shape) for x in inputs)
    wide = [
        x if len(x.shape) == axes
        else tf.reshape(x, [x.shape[0], *[1] * (axes - len(x.shape)), *x.shape[1:]])
        for x in inputs
    ]  # fmt: skip
    shape = [max(sizes) for sizes in zip(*(x.shape for x in wide), strict=True)]
    return [ops.broadcast(x, shape) for x in wide]


# ---- activations ----


@handles("Activation")
def _activation(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return forward.activate(layer.activation, inputs[0], layer)


@handles("ReLU")
def _relu(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    maximum = None if layer.max_value is None else float(layer.max_value)
    return rectifier(float(layer.negative_slope), float(layer.threshold), maximum)(inputs[0])


@handles("LeakyReLU")
def _leaky_relu(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return rectifier(float(layer.alpha))(inputs[0])


@handles("ELU")
def _elu(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return elu(float(layer.alpha))(inputs[0])


@handles("Softmax")
def _softmax(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    if _axes(layer, inputs[0]) != [len(inputs[0].shape) - 1]:
        raise cannot(layer, "a softmax over another axis", "use the last axis")
    if mask_of(inputs[0], forward) is not None:
        raise cannot(layer, "a softmax of masked steps", "put it behind a layer that ends the mask")
    return forward.softmax(inputs[0])


def is_model(layer: Any) -> bool:
    """Whether a layer is a model of its own."""
    return isinstance(layer, tf_keras.Model)
