"""Losses per example on one-hot labels, computed as tf_keras does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.ops import Tensor, with_gradient
from featherfed.proto.plan_terms import Loss

LossFunction = Callable[[Tensor, Tensor, ForwardPass], Tensor]
"""Outputs [B, K], one-hot labels [B, K] and the forward pass -> losses [B]."""
_EPSILON = 1e-7  # Keras' own


def _clip(p: Tensor) -> Tensor:
    """Return probabilities as Keras clips them before a logarithm."""
    return tf.minimum(tf.maximum(p, _EPSILON), 1.0 - _EPSILON)


def _was_inside(p: Tensor, clipped: Tensor) -> Tensor:
    """Return the derivative of `_clip`: 1.0 where nothing was clipped, else 0.0."""
    return tf.cast(tf.equal(p, clipped), tf.float32)


@with_gradient
def _log(p: Tensor) -> Any:
    """Return the logarithm of clipped probabilities."""
    clipped = _clip(p)

    def gradient(dy: Tensor) -> Tensor:
        return dy * _was_inside(p, clipped) / clipped

    return tf.math.log(clipped), gradient


@with_gradient
def _cross_entropy_from_logits(logits: Tensor, labels: Tensor) -> Any:
    """Return the cross-entropy [B] of a softmax."""
    logarithms = tf.nn.log_softmax(logits)

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        slope = (tf.exp(logarithms) - labels) * tf.reshape(dy, [-1, 1])
        return slope, tf.zeros_like(labels)

    return -tf.reduce_sum(logarithms * labels, axis=1), gradient


def _sparse(outputs: Tensor, labels: Tensor, forward: ForwardPass) -> Tensor:
    logits = forward.logits.get(outputs.ref())
    return _cross_entropy_from_logits(_log(outputs) if logits is None else logits, labels)


def _categorical(outputs: Tensor, labels: Tensor, forward: ForwardPass) -> Tensor:
    if outputs.ref() in forward.logits:
        return _sparse(outputs, labels, forward)
    # Without logits, Keras divides the outputs by their sum.
    return _cross_entropy(_normalized(outputs), labels)


@with_gradient
def _normalized(p: Tensor) -> Any:
    total = tf.reduce_sum(p, axis=1, keepdims=True)
    y = p / total

    def gradient(dy: Tensor) -> Tensor:
        return (dy - tf.reduce_sum(dy * y, axis=1, keepdims=True)) / total

    return y, gradient


@with_gradient
def _cross_entropy(p: Tensor, labels: Tensor) -> Any:
    """Return the cross-entropy [B] of probabilities."""
    clipped = _clip(p)

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        inside = _was_inside(p, clipped)
        return -labels / clipped * inside * tf.reshape(dy, [-1, 1]), tf.zeros_like(labels)

    return -tf.reduce_sum(labels * tf.math.log(clipped), axis=1), gradient


def _binary(outputs: Tensor, labels: Tensor, forward: ForwardPass) -> Tensor:
    logits = forward.logits.get(outputs.ref())
    if logits is None:
        return _binary_from_outputs(outputs, labels)
    return _binary_from_logits(logits, labels)


@with_gradient
def _binary_from_logits(x: Tensor, labels: Tensor) -> Any:
    # max(x, 0) - x * label + log(1 + exp(-|x|)), which does not overflow
    each = tf.nn.relu(x) - x * labels + tf.math.log(1.0 + tf.exp(-tf.abs(x)))
    number = float(x.shape[1])

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        slope = (tf.sigmoid(x) - labels) * (tf.reshape(dy, [-1, 1]) / number)
        return slope, tf.zeros_like(labels)

    return tf.reduce_mean(each, axis=1), gradient


@with_gradient
def _binary_from_outputs(p: Tensor, labels: Tensor) -> Any:
    clipped = _clip(p)
    # Keras says 1 - p + epsilon, of which TensorFlow's optimizer adds the constants first.
    yes, no = clipped + _EPSILON, (1.0 + _EPSILON) - clipped
    each = labels * tf.math.log(yes) + (1.0 - labels) * tf.math.log(no)
    number = float(p.shape[1])

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        inside = _was_inside(p, clipped)
        slope = ((1.0 - labels) / no - labels / yes) * inside
        return slope * (tf.reshape(dy, [-1, 1]) / number), tf.zeros_like(labels)

    return -tf.reduce_mean(each, axis=1), gradient


@with_gradient
def _squared_error(outputs: Tensor, labels: Tensor) -> Any:
    error = outputs - labels
    number = float(outputs.shape[1])

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        return error * (tf.reshape(dy, [-1, 1]) * (2.0 / number)), tf.zeros_like(labels)

    return tf.reduce_mean(tf.square(error), axis=1), gradient


def _mean_squared_error(outputs: Tensor, labels: Tensor, forward: ForwardPass) -> Tensor:
    return _squared_error(outputs, labels)


LOSSES: dict[Loss, LossFunction] = {
    Loss.SPARSE_CATEGORICAL_CROSSENTROPY: _sparse,
    Loss.CATEGORICAL_CROSSENTROPY: _categorical,
    Loss.BINARY_CROSSENTROPY: _binary,
    Loss.MEAN_SQUARED_ERROR: _mean_squared_error,
}
