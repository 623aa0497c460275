"""The update rules of tf_keras' optimizers: new weight and slots from weight, gradient, slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from featherfed.exporter.ops import Tensor
from featherfed.proto.plan_terms import Optimizer

_MOMENTUM = 0.9
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7

Apply = Callable[[Tensor, Tensor, Sequence[Tensor], Tensor, Tensor], tuple[Tensor, list[Tensor]]]
"""Weight, gradient, slots, learning rate [1], optimizer step from 1 [1] -> new weight, slots."""


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer's rule, and how many slots of a weight's shape it keeps, zero at the start."""

    slots: int
    apply: Apply


def _sgd(
    w: Tensor, g: Tensor, slots: Sequence[Tensor], rate: Tensor, step: Tensor
) -> tuple[Tensor, list[Tensor]]:
    return w - g * rate, []


def _momentum(
    w: Tensor, g: Tensor, slots: Sequence[Tensor], rate: Tensor, step: Tensor
) -> tuple[Tensor, list[Tensor]]:
    velocity = slots[0] * _MOMENTUM - g * rate
    return w + velocity, [velocity]


def _nesterov(
    w: Tensor, g: Tensor, slots: Sequence[Tensor], rate: Tensor, step: Tensor
) -> tuple[Tensor, list[Tensor]]:
    velocity = slots[0] * _MOMENTUM - g * rate
    return w + velocity * _MOMENTUM - g * rate, [velocity]


def _adam(
    w: Tensor, g: Tensor, slots: Sequence[Tensor], rate: Tensor, step: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Kingma and Ba 2015, with the bias correction in the rate."""
    mean = slots[0] + (g - slots[0]) * (1.0 - _BETA_1)
    square = slots[1] + (tf.square(g) - slots[1]) * (1.0 - _BETA_2)
    corrected = rate * tf.sqrt(1.0 - tf.pow(_BETA_2, step)) / (1.0 - tf.pow(_BETA_1, step))
    return w - mean * corrected / (tf.sqrt(square) + _EPSILON), [mean, square]


OPTIMIZERS: dict[Optimizer, UpdateRule] = {
    Optimizer.SGD: UpdateRule(0, _sgd),
    Optimizer.MOMENTUM: UpdateRule(1, _momentum),
    Optimizer.NESTEROV: UpdateRule(1, _nesterov),
    Optimizer.ADAM: UpdateRule(2, _adam),
}
