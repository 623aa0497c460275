"""Losses per row of answers, computed as tf_keras does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from featherfed.exporter.ops import Tensor, with_gradient
from featherfed.proto.plan_terms import Loss

LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Outputs [R, K], targets [R, K] (one-hot for classes), logits of the outputs -> losses [R]."""
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


def _sparse(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
    return _cross_entropy_from_logits(_log(outputs) if logits is None else logits, labels)


def _categorical(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
    if logits is not None:
        return _sparse(outputs, labels, logits)
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


def _binary(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
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


def _mean_squared_error(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
    return _squared_error(outputs, labels)


@with_gradient
def _absolute_error(outputs: Tensor, labels: Tensor) -> Any:
    error = outputs - labels
    number = float(outputs.shape[1])

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        return tf.sign(error) * (tf.reshape(dy, [-1, 1]) / number), tf.zeros_like(labels)

    return tf.reduce_mean(tf.abs(error), axis=1), gradient


def _mean_absolute_error(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
    return _absolute_error(outputs, labels)


@with_gradient
def _huber_error(outputs: Tensor, labels: Tensor) -> Any:
    error = outputs - labels
    near = tf.minimum(tf.maximum(error, -1.0), 1.0)
    number = float(outputs.shape[1])

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        return near * (tf.reshape(dy, [-1, 1]) / number), tf.zeros_like(labels)

    # Squared up to an error of 1, straight on beyond: half of near (2 error - near) is both.
    return tf.reduce_mean(0.5 * near * (2.0 * error - near), axis=1), gradient


def _huber(outputs: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
    return _huber_error(outputs, labels)


LOSSES: dict[Loss, LossFunction] = {
    Loss.SPARSE_CATEGORICAL_CROSSENTROPY: _sparse,
    Loss.CATEGORICAL_CROSSENTROPY: _categorical,
    Loss.BINARY_CROSSENTROPY: _binary,
    Loss.MEAN_SQUARED_ERROR: _mean_squared_error,
    Loss.MEAN_ABSOLUTE_ERROR: _mean_absolute_error,
    Loss.HUBER: _huber,
}


def example_losses(loss: Loss, outputs: Tensor, targets: Tensor, logits: Tensor | None) -> Tensor:
    """Return the losses [B] of answers [B, ..., K] to targets of the same shape."""
    batch, width = outputs.shape[0], outputs.shape[-1]
    rows = [None if t is None else tf.reshape(t, [-1, width]) for t in (outputs, targets, logits)]
    each = LOSSES[loss](*rows)
    return each if each.shape[0] == batch else tf.reduce_mean(tf.reshape(each, [batch, -1]), axis=1)
