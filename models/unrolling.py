"""Unrolls recurrent layers in time: TFLite's builtin operators have no loop over a Keras layer.

Where a model says GRU(8), what is converted is the same model with GRU(8, unroll=True) and the same
weights: a chain of the time steps, each with operators of its own.

With a mask the steps are written out here: Keras' own unrolling takes the mask in the wrong order
for a Bidirectional layer's way back, and its selections of int8 states are none that XNNPACK runs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from featherfed.models.errors import ModelError

LONG = 300
"""Beyond so many time steps a warning says that converting takes long and the file is large."""
_RECURRENT = frozenset({"GRU", "LSTM", "SimpleRNN", "RNN"})


def unrolled(model: Any) -> Any:
    """Return `model` with all recurrent layers unrolled; itself if it has none.

    Layers in wrappers and in nested models are found, too; the weights are copied. Raises
    ModelError, naming the layer, if a sequence has no fixed length; warns if one is longer than
    `LONG`.
    """
    config = json.loads(model.to_json())
    layers = list(_recurrent(config))
    if not layers:
        return model
    _check_lengths(model)
    for layer in layers:
        layer["config"]["unroll"] = True
        layer["registered_name"] = layer["class_name"]  # of the scope's classes, before Keras' own
    names = ", ".join(str(layer["config"].get("name")) for layer in layers)
    try:
        with tf_keras.utils.custom_object_scope(_MASKED):
            copy = tf_keras.models.model_from_json(json.dumps(config))
    except Exception as error:  # Keras raises whatever its layers raise
        raise ModelError(
            f"TFLite needs recurrent layers unrolled: give the sequences of {names} a fixed "
            f"length, and leave stateful out (Keras: {str(error)[-200:]})"
        ) from error
    copy.set_weights(model.get_weights())
    return copy


def _recurrent(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all recurrent layers in a model's configuration."""
    if isinstance(node, list):
        for item in node:
            yield from _recurrent(item)
    if isinstance(node, dict):
        if node.get("class_name") in _RECURRENT and isinstance(node.get("config"), dict):
            yield node
        for value in node.values():
            yield from _recurrent(value)


def _check_lengths(model: Any) -> None:
    """Warn of layers whose sequences are longer than `LONG`."""
    # Not by `submodules`, which breaks on what Keras keeps of dropout inside of recurrent layers.
    for layer in model._flatten_layers():
        if type(layer).__name__ not in (*_RECURRENT, "Bidirectional"):
            continue
        length = _length(layer)
        if length > LONG:
            warnings.warn(
                f"layer {layer.name!r} is unrolled into {length:,} time steps: converting takes "
                "minutes and the TFLite files get large; cut sequences into windows of at most "
                f"{LONG:,} steps, or shorten them by AveragePooling1D or a Conv1D with strides",
                stacklevel=3,
            )


def _length(layer: Any) -> int:
    """Return the number of time steps that a layer of a model gets; 0 inside of a wrapper."""
    try:
        return int(layer.input_shape[1] or 0)
    except (AttributeError, RuntimeError):  # a wrapped layer has no input of its own
        return 0


class _MaskedSteps:
    """Replaces a recurrent layer's call where a mask arrives; otherwise Keras unrolls."""

    def call(
        self, inputs: Any, mask: Any = None, training: Any = None, initial_state: Any = None
    ) -> Any:
        layer: Any = self
        if mask is None or initial_state is not None or layer.return_state:
            return super().call(  # type: ignore[misc]
                inputs, mask=mask, training=training, initial_state=initial_state
            )
        return _masked_steps(layer, inputs, mask)


def _masked_steps(layer: Any, inputs: Any, mask: Any) -> Any:
    """Return the outputs of a recurrent layer on inputs [B, T, I] with a bool mask [B, T]."""
    states = list(layer.get_initial_state(inputs))
    kept = tf.cast(tf.expand_dims(mask, 2), inputs.dtype)
    steps = list(zip(tf.unstack(inputs, axis=1), tf.unstack(kept, axis=1), strict=True))
    outputs = []
    for x, share in reversed(steps) if layer.go_backwards else steps:
        _, after = layer.cell(x, states, training=False)
        after = after if isinstance(after, (list, tuple)) else [after]
        states = [new * share + old * (1.0 - share) for new, old in zip(after, states, strict=True)]
        silent = layer.zero_output_for_mask
        outputs.append(states[0] * share if silent else states[0])
    return tf.stack(outputs, axis=1) if layer.return_sequences else outputs[-1]


_MASKED = {
    kind.__name__: type(kind.__name__, (_MaskedSteps, kind), {})
    for kind in (tf_keras.layers.GRU, tf_keras.layers.LSTM, tf_keras.layers.SimpleRNN)
}
