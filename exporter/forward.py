"""The state of a forward pass that is rebuilt layer by layer, with tensors for variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from featherfed.exporter.activations import activation, softmax
from featherfed.exporter.errors import ExportError
from featherfed.exporter.ops import Tensor, Window, add_bias, with_gradient


@dataclass
class ForwardPass:
    """The forward pass of one training step: tensors for the variables, and what layers add."""

    values: dict[int, Tensor]
    """Values of the variables at the start of the step, by id of the variable."""
    importance: Tensor
    """float32 [B]: 1 for examples, 0 for padding of the batch."""
    noise: Callable[[tuple[int, ...]], Tensor]
    """Returns uniform numbers in [0, 1) of a shape, drawn anew for every step."""
    updates: dict[int, Tensor] = field(default_factory=dict)
    """Values of the statistics after the step, by id of the variable."""
    penalties: dict[int, Tensor] = field(default_factory=dict)
    """What weight regularizers add to the loss, [1] each, by id of the variable."""
    logits: dict[Any, Tensor] = field(default_factory=dict)
    """Inputs of softmaxes and sigmoids, for losses on logits, by reference of their output."""
    before_pool: dict[Any, Callable[[Window], Tensor]] = field(default_factory=dict)
    """Fused convolution and max pool, from the pool's window, by reference of the convolution."""
    masks: dict[Any, Tensor] = field(default_factory=dict)
    """bool [B, T], false for the steps of a sequence that only fill it up, by its reference."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the layer's call under way, by name."""
    training: bool = True
    """Whether layers act as in training (dropout, statistics of the batch) or as in inference."""
    quantized: Mapping[int, Tensor] = field(default_factory=dict)
    """Fake-quantized weights as a layer sees them, by id of the variable."""

    @property
    def one(self) -> Tensor:
        """1.0 [1] that the converter does not take for a constant.

        The converter replaces a division by a constant with a multiplication by its reciprocal,
        which rounds differently. A constant times this stays a divisor.
        """
        return tf.reduce_max(self.importance, keepdims=True)

    def value(self, variable: Any) -> Tensor:
        """Return a variable's tensor, fake-quantized if training is quantization-aware."""
        return self.quantized.get(id(variable), self.values[id(variable)])

    def state(self, variable: Any) -> Tensor:
        """Return a statistic after the layers so far; a layer used twice updates it twice."""
        return self.updates.get(id(variable), self.values[id(variable)])

    def set_moving_average(self, variable: Any, new: Tensor, momentum: float) -> None:
        """Update the moving average of a statistic with `new`, as Keras does."""
        old = self.state(variable)
        self.updates[id(variable)] = old - (old - new) * (1.0 - momentum)

    def activate(self, function: Any, x: Tensor, layer: Any) -> Tensor:
        """Apply a layer's activation."""
        name = getattr(function, "__name__", type(function).__name__)
        y = activation(name, layer.name)(x)
        if name in ("softmax", "sigmoid"):
            self.logits[y.ref()] = x
        return y

    def finish(self, layer: Any, y: Tensor) -> Tensor:
        """Add a layer's bias, if it has one, and apply its activation."""
        if layer.use_bias:
            y = add_bias(y, self.value(layer.bias))
        return self.activate(layer.activation, y, layer)

    def softmax(self, x: Tensor) -> Tensor:
        """Apply a softmax over the last axis."""
        y = softmax(x)
        self.logits[y.ref()] = x
        return y

    def penalize(self, layer: Any, layer_name: str) -> None:
        """Add the penalties of a layer's weight regularizers; raises ExportError for others.

        `layer_name` is for errors: of a recurrent layer, `layer` is the cell.
        """
        for attribute, regularizer in list(vars(layer).items()):
            name = attribute.lstrip("_")
            if not name.endswith("_regularizer") or not hasattr(regularizer, "get_config"):
                continue
            if name == "activity_regularizer":
                raise ExportError(
                    f"layer {layer_name!r}: {name} has no training step for LiteRT; regularize "
                    "weights instead, or use Keras clients (--runtime keras)"
                )
            variable = _variable_of(layer, name.removesuffix("_regularizer"))
            if variable is not None:  # a layer without bias may have a regularizer for it
                value = self.values[id(variable)]
                self.penalties[id(variable)] = _penalty(regularizer, value, layer_name)


def _variable_of(layer: Any, name: str) -> Any:
    return getattr(layer, name, None if name == "bias" else getattr(layer, f"{name}_kernel", None))


def _penalty(regularizer: Any, value: Tensor, layer_name: str) -> Tensor:
    config = regularizer.get_config()
    if not set(config) <= {"l1", "l2"}:
        raise ExportError(
            f"layer {layer_name!r}: the regularizer {type(regularizer).__name__} has no training "
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
