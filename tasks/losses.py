"""Losses of a model's answers in numpy, as tf_keras computes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from featherfed.proto.plan_terms import Loss

Floats = npt.NDArray[np.float64]
_EPSILON = 1e-7  # Keras' own


def losses(loss: Loss, outputs: Floats, targets: Floats) -> Floats:
    """Return the loss of each example, float64 [N].

    `outputs` and `targets` are float64 of one shape [N, ...]; classes are one-hot along the last
    axis.
    """
    each = _LOSSES[loss](outputs, targets)
    means: Floats = each.reshape(len(each), -1).mean(axis=1)
    return means


def _clip(p: Floats) -> Floats:
    clipped: Floats = np.clip(p, _EPSILON, 1.0 - _EPSILON)
    return clipped


def _sparse(p: Floats, y: Floats) -> Floats:
    total: Floats = -(np.log(_clip(p)) * y).sum(axis=-1)
    return total


def _categorical(p: Floats, y: Floats) -> Floats:
    return _sparse(p / p.sum(axis=-1, keepdims=True), y)


def _binary(p: Floats, y: Floats) -> Floats:
    p = _clip(p)
    each: Floats = -(y * np.log(p + _EPSILON) + (1.0 - y) * np.log(1.0 - p + _EPSILON))
    return each


def _squared(p: Floats, y: Floats) -> Floats:
    each: Floats = np.square(p - y)
    return each


def _absolute(p: Floats, y: Floats) -> Floats:
    each: Floats = np.abs(p - y)
    return each


def _huber(p: Floats, y: Floats) -> Floats:
    error = np.abs(p - y)
    each: Floats = np.where(error <= 1.0, 0.5 * error * error, error - 0.5)
    return each


_LOSSES: dict[Loss, Callable[[Floats, Floats], Floats]] = {
    Loss.SPARSE_CATEGORICAL_CROSSENTROPY: _sparse,
    Loss.CATEGORICAL_CROSSENTROPY: _categorical,
    Loss.BINARY_CROSSENTROPY: _binary,
    Loss.MEAN_SQUARED_ERROR: _squared,
    Loss.MEAN_ABSOLUTE_ERROR: _absolute,
    Loss.HUBER: _huber,
}
