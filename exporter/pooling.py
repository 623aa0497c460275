"""Pooling of images and of sequences, which are images of one row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from featherfed.exporter import ops
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.handlers import handles
from featherfed.exporter.masks import mask_of
from featherfed.exporter.ops import Tensor, Window
from featherfed.exporter.shapes import as_image, as_sequence


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


# ---- sequences ----


@handles("MaxPooling1D")
def _max_pool1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return as_sequence(ops.max_pool(as_image(inputs[0]), _line(layer, inputs[0])))


@handles("AveragePooling1D")
def _average_pool1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return as_sequence(ops.average_pool(as_image(inputs[0]), _line(layer, inputs[0])))


def _line(layer: Any, x: Tensor) -> Window:
    return Window.of((1, x.shape[1]), (1, *layer.pool_size), (1, *layer.strides), layer.padding)


@handles("GlobalAveragePooling1D")
def _global_average1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    mask = mask_of(x, forward)
    y = ops.global_average(as_image(x)) if mask is None else ops.masked_average(x, mask)
    return _kept1d(layer, y)


@handles("GlobalMaxPooling1D")
def _global_max1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _kept1d(layer, ops.global_max(as_image(inputs[0])))


def _kept1d(layer: Any, y: Tensor) -> Tensor:
    return tf.reshape(y, [y.shape[0], 1, y.shape[1]]) if layer.keepdims else y
