"""Convolutions of images and of sequences, which are images of one row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from featherfed.exporter import ops
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.handlers import cannot, handles
from featherfed.exporter.ops import Tensor, Window
from featherfed.exporter.shapes import as_image, as_sequence


@handles("Conv2D")
def _conv2d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x, kernel, window = inputs[0], forward.value(layer.kernel), _window(layer, inputs[0])
    y = forward.finish(layer, ops.convolution(x, kernel, window, layer.groups))
    if layer.activation is tf_keras.activations.relu and layer.groups == 1:
        forward.before_pool[y.ref()] = lambda pool: forward.finish(
            layer, ops.convolution_max_pool(x, kernel, window, pool)
        )
    return y


@handles("DepthwiseConv2D")
def _depthwise(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    y = ops.depthwise(inputs[0], forward.value(layer.depthwise_kernel), _window(layer, inputs[0]))
    return forward.finish(layer, y)


@handles("SeparableConv2D")
def _separable(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    depth = ops.depthwise(x, forward.value(layer.depthwise_kernel), _window(layer, x))
    point = Window.of(depth.shape[1:3], (1, 1), (1, 1), "valid")
    y = ops.convolution(depth, forward.value(layer.pointwise_kernel), point)
    return forward.finish(layer, y)


@handles("Conv2DTranspose")
def _conv2d_transpose(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    image = layer.compute_output_shape(x.shape)[1:3]
    window = Window.of(image, layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    y = _transposed(layer, x, forward.value(layer.kernel), window)
    return forward.finish(layer, y)


def _transposed(layer: Any, x: Tensor, kernel: Tensor, window: Window) -> Tensor:
    if window.out != tuple(x.shape[1:3]):
        raise cannot(layer, "this output_padding", "leave output_padding out")
    return ops.transposed_convolution(x, kernel, window)


def _window(layer: Any, x: Tensor) -> Window:
    return Window.of(
        x.shape[1:3], layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate
    )


# ---- sequences ----


@handles("Conv1D")
def _conv1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x, padding = _causal(layer, inputs[0])
    kernel = _as_kernel(forward.value(layer.kernel))
    y = ops.convolution(as_image(x), kernel, _line(layer, x, padding), layer.groups)
    return forward.finish(layer, as_sequence(y))


@handles("DepthwiseConv1D")
def _depthwise1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x, padding = _causal(layer, inputs[0])
    kernel = _as_kernel(forward.value(layer.depthwise_kernel))
    y = ops.depthwise(as_image(x), kernel, _line(layer, x, padding))
    return forward.finish(layer, as_sequence(y))


@handles("SeparableConv1D")
def _separable1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x, padding = _causal(layer, inputs[0])
    kernel = _as_kernel(forward.value(layer.depthwise_kernel))
    depth = ops.depthwise(as_image(x), kernel, _line(layer, x, padding))
    point = Window.of(depth.shape[1:3], (1, 1), (1, 1), "valid")
    y = ops.convolution(depth, _as_kernel(forward.value(layer.pointwise_kernel)), point)
    return forward.finish(layer, as_sequence(y))


@handles("Conv1DTranspose")
def _conv1d_transpose(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    image = (1, layer.compute_output_shape(x.shape)[1])
    window = Window.of(
        image, (1, *layer.kernel_size), (1, *layer.strides), layer.padding,
        (1, *layer.dilation_rate),
    )  # fmt: skip
    y = _transposed(layer, as_image(x), _as_kernel(forward.value(layer.kernel)), window)
    return forward.finish(layer, as_sequence(y))


def _as_kernel(kernel: Tensor) -> Tensor:
    return tf.reshape(kernel, [1, *kernel.shape])


def _causal(layer: Any, x: Tensor) -> tuple[Tensor, str]:
    """Return x with the zeros of causal padding in front, and the padding that is left to do."""
    if layer.padding != "causal":
        return x, layer.padding
    before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    return tf.pad(x, [[0, 0], [before, 0], [0, 0]]), "valid"


def _line(layer: Any, x: Tensor, padding: str) -> Window:
    return Window.of(
        (1, x.shape[1]), (1, *layer.kernel_size), (1, *layer.strides), padding,
        (1, *layer.dilation_rate),
    )  # fmt: skip
