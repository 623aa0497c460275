"""Layers that move values without changing them, and UpSampling, which repeats or blends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from featherfed.exporter import ops
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.handlers import cannot, handles
from featherfed.exporter.ops import Tensor


def as_image(x: Tensor) -> Tensor:
    """Return a sequence [B, T, C] as images of one row, [B, 1, T, C]."""
    return tf.reshape(x, [x.shape[0], 1, *x.shape[1:]])


def as_sequence(x: Tensor) -> Tensor:
    """Return images of one row, [B, 1, T, C], as a sequence [B, T, C]."""
    return tf.reshape(x, [x.shape[0], *x.shape[2:]])


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


@handles("ZeroPadding1D")
def _zero_padding1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return tf.pad(inputs[0], [[0, 0], list(layer.padding), [0, 0]])


@handles("Cropping1D")
def _cropping1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _cropped(inputs[0], [layer.cropping])


@handles("Cropping2D")
def _cropping2d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _cropped(inputs[0], layer.cropping)


def _cropped(x: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Cut (first, last) slices off the axes behind the batch."""
    for axis, (first, last) in enumerate(pairs, 1):
        x = ops.part(x, axis, first, x.shape[axis] - first - last)
    return x


@handles("RepeatVector")
def _repeat_vector(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    return ops.repeat(tf.reshape(x, [x.shape[0], 1, x.shape[1]]), 1, layer.n)


@handles("UpSampling1D")
def _upsampling1d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return _repeated_each(inputs[0], 1, int(layer.size))


@handles("UpSampling2D")
def _upsampling2d(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    if layer.interpolation not in ("nearest", "bilinear"):
        raise cannot(layer, f"the interpolation {layer.interpolation}", "use nearest or bilinear")
    for axis, times in enumerate(layer.size, 1):
        if layer.interpolation == "nearest":
            x = _repeated_each(x, axis, times)
        else:
            x = ops.resample(x, axis, _blend(x.shape[axis], times))
    return x


def _repeated_each(x: Tensor, axis: int, times: int) -> Tensor:
    """Return x with every single slice along an axis `times` times in a row."""
    shape = list(x.shape)
    apart = ops.repeat(tf.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]]), axis + 1, times)
    return tf.reshape(apart, [*shape[:axis], shape[axis] * times, *shape[axis + 1 :]])


def _blend(size: int, times: int) -> Any:
    """Return the float32 matrix [size * times, size] of TensorFlow's bilinear interpolation."""
    centres = ((np.arange(size * times) + 0.5) / times - 0.5).astype(np.float32)
    below = np.floor(centres)
    share = centres - below
    rows = np.arange(size * times)
    matrix = np.zeros((size * times, size), np.float32)
    for place, weight in ((below, 1 - share), (below + 1, share)):
        np.add.at(matrix, (rows, np.clip(place, 0, size - 1).astype(int)), weight)
    return matrix
