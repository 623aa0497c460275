"""Keras layers, one function each: from input tensors and the forward pass to the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from featherfed.exporter import ops, recurrent
from featherfed.exporter.activations import elu, rectifier
from featherfed.exporter.errors import ExportError
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.ops import Tensor, Window

Handler = Callable[[Any, list[Tensor], ForwardPass], Tensor]
"""Layer, its inputs and the forward pass -> its output in training."""

_HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a function for Keras layer classes."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def run_layer(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    """Return the output of a Keras layer in training.

    Raises ExportError, naming the layer and the remedy, if it cannot be exported.
    """
    kind = type(layer).__name__
    if kind not in _HANDLERS:
        raise _cannot(layer, kind, f"use one of {', '.join(sorted(_HANDLERS))}")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _cannot(layer, "channels_first", "use channels_last")
    _check_constraints(layer, layer)
    forward.penalize(layer, layer.name)
    return _HANDLERS[kind](layer, inputs, forward)


def _cannot(layer: Any, what: str, instead: str) -> ExportError:
    return ExportError(
        f"layer {layer.name!r}: {what} has no training step for LiteRT; {instead}, or Keras "
        "clients (--runtime keras)"
    )


def _check_constraints(layer: Any, holder: Any) -> None:
    for name in [name for name in vars(holder) if name.endswith("_constraint")]:
        if getattr(holder, name) is not None:
            raise _cannot(layer, f"a {name}", "leave it out")


@handles("InputLayer")
def _input(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return inputs[0]


# ---- kernels ----


@handles("Dense")
def _dense(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    flat = tf.reshape(x, [-1, x.shape[-1]])
    y = ops.matmul(flat, forward.value(layer.kernel))
    return _finish(layer, tf.reshape(y, [*x.shape[:-1], layer.units]), forward)


@handles("Conv2D")
def _conv2d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x, kernel, window = inputs[0], forward.value(layer.kernel), _window(layer, inputs[0])
    y = _finish(layer, ops.convolution(x, kernel, window, layer.groups), forward)
    if layer.activation is tf_keras.activations.relu and layer.groups == 1:
        forward.before_pool[y.ref()] = lambda pool: _finish(
            layer, ops.convolution_max_pool(x, kernel, window, pool), forward
        )
    return y


@handles("Conv1D")
def _conv1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    if layer.padding == "causal":
        raise _cannot(layer, "causal padding", "use valid or same")
    window = Window.of(
        (1, x.shape[1]), (1, *layer.kernel_size), (1, *layer.strides), layer.padding,
        (1, *layer.dilation_rate),
    )  # fmt: skip
    kernel = forward.value(layer.kernel)
    y = ops.convolution(
        tf.reshape(x, [x.shape[0], 1, *x.shape[1:]]),
        tf.reshape(kernel, [1, *kernel.shape]),
        window,
        layer.groups,
    )
    return _finish(layer, tf.reshape(y, [y.shape[0], *y.shape[2:]]), forward)


@handles("DepthwiseConv2D")
def _depthwise(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    y = ops.depthwise(inputs[0], forward.value(layer.depthwise_kernel), _window(layer, inputs[0]))
    return _finish(layer, y, forward)


@handles("SeparableConv2D")
def _separable(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    depth = ops.depthwise(x, forward.value(layer.depthwise_kernel), _window(layer, x))
    point = Window.of(depth.shape[1:3], (1, 1), (1, 1), "valid")
    y = ops.convolution(depth, forward.value(layer.pointwise_kernel), point)
    return _finish(layer, y, forward)


def _window(layer: Any, x: Tensor) -> Window:
    return Window.of(
        x.shape[1:3], layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate
    )


def _finish(layer: Any, y: Tensor, forward: ForwardPass) -> Tensor:
    """Add the bias and apply the activation."""
    return forward.activate(layer.activation, _with_bias(layer, y, forward), layer)


def _with_bias(layer: Any, y: Tensor, forward: ForwardPass) -> Tensor:
    return ops.add_bias(y, forward.value(layer.bias)) if layer.use_bias else y


@handles("Embedding")
def _embedding(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    if layer.mask_zero:
        raise _cannot(layer, "mask_zero", "leave it out")
    return ops.embedding(tf.cast(inputs[0], tf.int32), forward.value(layer.embeddings))


# ---- normalisation ----


@handles("BatchNormalization")
def _batch_norm(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    if _axes(layer, x) != [len(x.shape) - 1] or getattr(layer, "renorm", False):
        raise _cannot(layer, "another axis than the last, or renorm,", "normalise the last axis")
    if not layer.trainable or not forward.training:
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
        raise _cannot(layer, "other axes than the last ones", "normalise the last axis")
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


# ---- pooling and shape ----


@handles("MaxPooling2D")
def _max_pool(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x, window = inputs[0], _pool_window(layer, inputs[0])
    if window.is_tiling and x.ref() in forward.before_pool:
        # Neither a bias nor a ReLU changes which of a window's values is the largest.
        return forward.before_pool[x.ref()](window)
    return ops.max_pool(x, window)


@handles("AveragePooling2D")
def _average_pool(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return ops.average_pool(inputs[0], _pool_window(layer, inputs[0]))


def _pool_window(layer: Any, x: Tensor) -> Window:
    return Window.of(x.shape[1:3], layer.pool_size, layer.strides, layer.padding)


@handles("GlobalAveragePooling2D")
def _global_average(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _kept(layer, ops.global_average(inputs[0]))


@handles("GlobalMaxPooling2D")
def _global_max(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _kept(layer, ops.global_max(inputs[0]))


def _kept(layer: Any, y: Tensor) -> Tensor:
    return tf.reshape(y, [y.shape[0], 1, 1, y.shape[1]]) if layer.keepdims else y


@handles("Flatten", "Reshape")
def _reshape(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    return tf.reshape(x, [x.shape[0], *layer.compute_output_shape(x.shape)[1:]])


@handles("Permute")
def _permute(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return tf.transpose(inputs[0], [0, *layer.dims])


@handles("ZeroPadding2D")
def _zero_padding(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return tf.pad(inputs[0], [[0, 0], *[list(pair) for pair in layer.padding], [0, 0]])


@handles("Rescaling")
def _rescaling(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return inputs[0] * float(layer.scale) + float(layer.offset)


@handles("Concatenate")
def _concatenate(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return tf.concat(inputs, axis=layer.axis % len(inputs[0].shape))


@handles("Add")
def _add(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    _same_shapes(layer, inputs)
    return tf.add_n(inputs) if len(inputs) > 2 else inputs[0] + inputs[1]


@handles("Subtract")
def _subtract(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    _same_shapes(layer, inputs)
    return inputs[0] - inputs[1]


@handles("Multiply")
def _multiply(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    _same_shapes(layer, inputs)
    product = inputs[0]
    for x in inputs[1:]:
        product = product * x
    return product


@handles("Average")
def _average(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _add(layer, inputs, forward) / float(len(inputs))


def _same_shapes(layer: Any, inputs: list[Tensor]) -> None:
    if len({tuple(x.shape) for x in inputs}) != 1:
        raise _cannot(layer, "broadcasting", "give it inputs of one shape")


# ---- activations and dropout ----


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
        raise _cannot(layer, "a softmax over another axis", "use the last axis")
    return forward.softmax(inputs[0])


@handles("Dropout")
def _dropout(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    shape = [given or own for given, own in zip(layer.noise_shape or x.shape, x.shape, strict=True)]
    return _drop(x, tuple(shape), layer.rate, forward)


@handles("SpatialDropout2D")
def _spatial_dropout(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    return _drop(x, (x.shape[0], 1, 1, x.shape[3]), layer.rate, forward)


def _drop(x: Tensor, shape: tuple[int, ...], rate: float, forward: ForwardPass) -> Tensor:
    if not rate or not forward.training:
        return x
    kept = tf.cast(tf.greater_equal(forward.noise(shape), rate), tf.float32)
    return x * (kept * (1.0 / (1.0 - rate)))


# ---- sequences ----


@handles("GRU", "LSTM", "SimpleRNN")
def _recurrent(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    if layer.stateful or layer.return_state or len(inputs) > 1:
        raise _cannot(layer, "stateful, return_state or an initial state", "leave it out")
    if layer.dropout or layer.recurrent_dropout:
        raise _cannot(layer, "dropout inside a recurrent layer", "put a Dropout layer before it")
    forward.penalize(layer.cell, layer.name)
    _check_constraints(layer, layer.cell)
    return recurrent.unroll(layer, inputs[0], forward)


def is_model(layer: Any) -> bool:
    """Whether a layer is a model of its own."""
    return isinstance(layer, tf_keras.Model)
