"""What is known while a model's forward pass is written down once more, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from featherfed.exporter.activations import activation, softmax
from featherfed.exporter.errors import ExportError
from featherfed.exporter.ops import Tensor, Window, with_gradient


@dataclass
class Replay:
    """The tensors that stand for a model's variables in one training step, and what it leaves."""

    values: dict[int, Tensor]
    """By the id of a variable: what it holds at the start of the step."""
    importance: Tensor
    """float32 [B]: 1 for examples, 0 for what only fills the batch."""
    noise: Callable[[tuple[int, ...]], Tensor]
    """Returns uniform numbers in [0, 1) of a shape, new in every step."""
    updates: dict[int, Tensor] = field(default_factory=dict)
    """Statistics after the step, by the id of their variable."""
    penalties: dict[int, Tensor] = field(default_factory=dict)
    """What weight regularizers add to the loss, [1] each, by the id of the variable."""
    logits: dict[Any, Tensor] = field(default_factory=dict)
    """By the reference of a softmax's or sigmoid's output: its input, for losses that want it."""
    before_pool: dict[Any, Callable[[Window], Tensor]] = field(default_factory=dict)
    """By the reference of a convolution's output: from a max pool's window to the pooled output."""
    quantized: Mapping[int, Tensor] = field(default_factory=dict)
    """What a layer sees of a quantized weight, by the id of the variable."""

    @property
    def one(self) -> Tensor:
        """1.0 [1], which the converter does not know: times a constant, it is divided by as it is.

        Instead of dividing by a constant, the converter multiplies with the reciprocal, and that
        rounds differently.
        """
        return tf.reduce_max(self.importance, keepdims=True)

    def value(self, variable: Any) -> Tensor:
        """Return a variable's tensor, fake-quantized if training is quantization-aware."""
        return self.quantized.get(id(variable), self.values[id(variable)])

    def state(self, variable: Any) -> Tensor:
        """Return a statistic as the layers before this one leave it: a layer may be used twice."""
        return self.updates.get(id(variable), self.values[id(variable)])

    def set_moving_average(self, variable: Any, new: Tensor, momentum: float) -> None:
        """Move a statistic towards `new`, as Keras does."""
        old = self.state(variable)
        self.updates[id(variable)] = old - (old - new) * (1.0 - momentum)

    def activate(self, function: Any, x: Tensor, layer: Any) -> Tensor:
        """Apply a layer's activation."""
        name = getattr(function, "__name__", type(function).__name__)
        y = activation(name, layer.name)(x)
        if name in ("softmax", "sigmoid"):
            self.logits[y.ref()] = x
        return y

    def softmax(self, x: Tensor) -> Tensor:
        """Apply a softmax over the last axis."""
        y = softmax(x)
        self.logits[y.ref()] = x
        return y

    def penalize(self, layer: Any, called: str) -> None:
        """Add the penalties of a layer's weight regularizers; raises ExportError for others.

        `called` is the name for errors: a recurrent layer's weights are those of its cell.
        """
        for attribute, regularizer in list(vars(layer).items()):
            name = attribute.lstrip("_")
            if not name.endswith("_regularizer") or not hasattr(regularizer, "get_config"):
                continue
            if name == "activity_regularizer":
                raise ExportError(
                    f"layer {called!r}: {name} has no training step for LiteRT; regularize "
                    "weights instead, or use Keras clients (--runtime keras)"
                )
            variable = _variable_of(layer, name.removesuffix("_regularizer"))
            if variable is not None:  # a layer without bias may have a regularizer for it
                value = self.values[id(variable)]
                self.penalties[id(variable)] = _penalty(regularizer, value, called)


def _variable_of(layer: Any, name: str) -> Any:
    return getattr(layer, name, None if name == "bias" else getattr(layer, f"{name}_kernel", None))


def _penalty(regularizer: Any, value: Tensor, called: str) -> Tensor:
    config = regularizer.get_config()
    if not set(config) <= {"l1", "l2"}:
        raise ExportError(
            f"layer {called!r}: the regularizer {type(regularizer).__name__} has no training "
            "step for LiteRT; use l1, l2 or both, or Keras clients (--runtime keras)"
        )
    l1, l2 = float(config.get("l1", 0.0)), float(config.get("l2", 0.0))

    @with_gradient
    def apply(weights: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        flat = tf.reshape(weights, [-1])
        total = l1 * tf.reduce_sum(tf.abs(flat), keepdims=True)
        total += l2 * tf.reduce_sum(tf.square(flat), keepdims=True)

        def gradient(dy: Tensor) -> Tensor:
            slope = l1 * tf.sign(weights) + 2.0 * l2 * weights
            return slope * tf.reshape(dy, [1] * len(weights.shape))

        return total, gradient

    return apply(value)
