"""TFMOT's 8-bit quantization-aware training, in operators that TFLite has built in.

TensorFlow's fake quantization with its nudged range (Jacob et al. 2018, section 3.1) written out,
and the three range rules of TFMOT: the last value, a moving average, and all values ever seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from featherfed.exporter.errors import ExportError
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.layers import run_layer
from featherfed.exporter.ops import Tensor, with_gradient

_DECAY = 0.999  # of the moving average of activation ranges
_QUANTIZED_BEFORE = frozenset({"softmax", "sigmoid", "tanh", "gelu"})
_QUANTIZED_AFTER = frozenset({"linear", "relu", "swish", "gelu"})
"""Activations that TFMOT quantizes after them, and those above before them; gelu both ways."""


def is_quantizing(layer: Any) -> bool:
    """Whether a layer is TFMOT's: a quantized input or a quantized layer."""
    return type(layer).__name__ in ("QuantizeLayer", "QuantizeWrapper", "QuantizeWrapperV2")


def run_quantized(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    """Return the output in training of a layer of a quantization-aware model."""
    ranges = {v.name.removesuffix(":0").rsplit("/", 1)[-1]: v for v in layer.weights}
    if type(layer).__name__ == "QuantizeLayer":
        name = next(n for n in ranges if n.endswith("_min")).removesuffix("_min")
        return _quantize(inputs[0], layer.quantizer, ranges, name, forward, layer)
    return _Wrapped(layer, ranges, forward).run(inputs)


class _Wrapped:
    """A layer inside TFMOT's wrapper: quantized weights, activation and output."""

    def __init__(self, wrapper: Any, ranges: dict[str, Any], forward: ForwardPass) -> None:
        self._wrapper = wrapper
        self._config = wrapper.quantize_config
        self._ranges = ranges
        self._forward = forward

    def run(self, inputs: list[Tensor]) -> Tensor:
        inner = self._wrapper.layer
        forward = self._forward
        quantized = dict(forward.quantized)
        for attribute, quantizer in self._weights():
            variable = self._ranges[attribute]
            quantized[id(variable)] = _quantize(
                forward.value(variable), quantizer, self._ranges, attribute, forward, inner
            )
        before, forward.quantized = forward.quantized, quantized
        # The handler applies no activation of its own: quantization comes before or after it.
        activations = list(self._config.get_activations_and_quantizers(inner))
        try:
            with _OwnVariables(inner, activations, self._ranges):
                y = run_layer(inner, inputs, forward)
        finally:
            forward.quantized = before
        for activation, quantizer in activations:
            y = self._activate(y, activation, quantizer)
        for quantizer in self._config.get_output_quantizers(inner):
            y = _quantize(y, quantizer, self._ranges, "output", forward, inner)
        return y

    def _weights(self) -> list[tuple[str, Any]]:
        """Return the quantized weights by their own name, and their quantizers."""
        pairs = self._config.get_weights_and_quantizers(self._wrapper.layer)
        names = self._config.get_config().get("weight_attrs", [])
        if len(names) != len(pairs):
            raise _unknown(self._wrapper.layer, type(self._config).__name__)
        return [(name, quantizer) for name, (_, quantizer) in zip(names, pairs, strict=True)]

    def _activate(self, y: Tensor, activation: Any, quantizer: Any) -> Tensor:
        layer, forward = self._wrapper.layer, self._forward
        function = getattr(activation, "activation", activation)  # QuantizeAwareActivation's own
        name = getattr(function, "__name__", type(function).__name__)
        if name == "NoOpActivation":
            return y
        if name in _QUANTIZED_BEFORE:
            y = _quantize(y, quantizer, self._ranges, "pre_activation", forward, layer)
        y = forward.activate(function, y, layer)
        if name in _QUANTIZED_AFTER:
            y = _quantize(y, quantizer, self._ranges, "post_activation", forward, layer)
        return y


class _OwnVariables:
    """A context in which a wrapped layer has plain variables and, if listed, no activation."""

    def __init__(self, layer: Any, activations: list[Any], variables: dict[str, Any]) -> None:
        self._layer = layer
        self._new = {n: v for n, v in variables.items() if hasattr(layer, n)}
        if activations:
            self._new["activation"] = tf_keras.activations.linear
        self._old: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._old = {name: getattr(self._layer, name) for name in self._new}
        for name, value in self._new.items():
            setattr(self._layer, name, value)

    def __exit__(self, *exc: object) -> None:
        for name, value in self._old.items():
            setattr(self._layer, name, value)


def _unknown(layer: Any, what: str) -> ExportError:
    return ExportError(
        f"layer {layer.name!r}: TFMOT's {what} has no training step for LiteRT; use the method "
        "none or prune, or Keras clients (--runtime keras)"
    )


def _quantize(
    x: Tensor,
    quantizer: Any,
    ranges: dict[str, Any],
    name: str,
    forward: ForwardPass,
    layer: Any,
) -> Tensor:
    kind, config = type(quantizer).__name__, quantizer.get_config()
    rule = next((rule for word, rule in _RULES.items() if word in kind), None)
    if rule is None:
        raise _unknown(layer, kind)
    low, high = _extremes(x, config["per_axis"])
    if config["symmetric"]:
        levels = 1 << config["num_bits"]
        ratio = -1.0 if config["narrow_range"] else -(levels - 2) / levels
        low, high = tf.minimum(low, high / ratio), tf.maximum(high, low * ratio)
    else:
        low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
    bounds = []
    for end, new, outer in (("min", low, tf.minimum), ("max", high, tf.maximum)):
        variable = ranges[f"{name}_{end}"]
        old = forward.state(variable)
        if not forward.training:
            bounds.append(old)
            continue
        bounds.append(rule(old, tf.reshape(new, old.shape), outer))
        forward.updates[id(variable)] = bounds[-1]
    first = 1 if config["narrow_range"] else 0
    # Times `one`, or the converter would multiply by the reciprocal, and rounding could put an
    # extreme weight outside of its range.
    intervals = float((1 << config["num_bits"]) - 1 - first) * forward.one
    return fake_quantize(x, bounds[0], bounds[1], float(first), intervals)


_Rule = Callable[[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]], Tensor]
_RULES: dict[str, _Rule] = {
    "MovingAverage": lambda old, new, outer: old - (old - new) * (1.0 - _DECAY),
    "AllValues": lambda old, new, outer: outer(old, new),
    "LastValue": lambda old, new, outer: new,
    "Default8BitConvWeights": lambda old, new, outer: new,
}
"""How a range follows the values, by a part of the quantizer's class name."""


def _extremes(x: Tensor, per_axis: bool) -> tuple[Tensor, Tensor]:
    rows = tf.reshape(tf.stop_gradient(x), [-1, x.shape[-1]] if per_axis else [-1, 1])
    return tf.reduce_min(rows, axis=0), tf.reduce_max(rows, axis=0)


def fake_quantize(
    x: Tensor, low: Tensor, high: Tensor, first: float, intervals: Tensor | float
) -> Tensor:
    """Round x [..., C] to `intervals` + 1 even levels from low to high ([1] or [C]), 0 among them.

    `first` is the lowest level's number. The gradient passes where x is in the range.
    """
    width = (high - low) / intervals
    # A range without width has no levels: its values become 0.
    empty = tf.cast(tf.less_equal(width, 0.0), tf.float32)
    width = width + empty
    zero = first - low / width
    zero = tf.minimum(tf.maximum(tf.floor(zero + 0.5), first), first + intervals)
    bottom, top = (first - zero) * width, (first + intervals - zero) * width
    inverse = 1.0 / width

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        clipped = tf.maximum(tf.minimum(x, top), bottom) - bottom
        offset = tf.floor(0.5 - bottom * inverse)
        y = tf.floor(clipped * inverse - offset + 0.5) * width * (1.0 - empty)

        def gradient(dy: Tensor) -> Tensor:
            inside = tf.logical_and(tf.greater_equal(x, bottom), tf.less_equal(x, top))
            return dy * tf.cast(inside, tf.float32)

        return y, gradient

    return apply(x)
