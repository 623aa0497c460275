"""Layers over time: embeddings, masks, recurrent layers and the wrappers around layers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from featherfed.exporter import ops, recurrent
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.handlers import cannot, check_constraints, handles, run_inner
from featherfed.exporter.masks import mask_of
from featherfed.exporter.noise import drop
from featherfed.exporter.ops import Tensor

MAX_STEPS = 1000
"""Most time steps of a recurrent layer: a training step holds the operators of each."""


@handles("Embedding")
def _embedding(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    return ops.embedding(tf.cast(inputs[0], tf.int32), forward.value(layer.embeddings))


@handles("Masking")
def _masking(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    x = inputs[0]
    kept = tf.cast(layer.compute_mask(x), tf.float32)
    return x * ops.repeat(tf.reshape(kept, [*x.shape[:-1], 1]), len(x.shape) - 1, x.shape[-1])


@handles("GRU", "LSTM", "SimpleRNN")
def _recurrent(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    _check_recurrent(layer, inputs)
    forward.penalize(layer.cell, layer.name)
    check_constraints(layer, layer.cell)
    mask = mask_of(inputs[0], forward)
    return recurrent.unroll(layer, _dropped(layer, inputs[0], forward), mask, forward)


def _check_recurrent(layer: Any, inputs: list[Tensor]) -> None:
    if layer.stateful or layer.return_state or len(inputs) > 1:
        raise cannot(layer, "stateful, return_state or an initial state", "leave it out")
    if layer.recurrent_dropout:
        raise cannot(layer, "recurrent_dropout", "use dropout")
    if layer.time_major:
        raise cannot(layer, "time_major", "leave it out")
    if inputs[0].shape[1] > MAX_STEPS:
        raise cannot(
            layer,
            f"a sequence of {inputs[0].shape[1]:,} steps (at most {MAX_STEPS:,} are unrolled)",
            "cut it into windows, or shorten it by AveragePooling1D or a Conv1D with strides",
        )


def _dropped(layer: Any, x: Tensor, forward: ForwardPass) -> Tensor:
    # Keras draws for every step anew where its fused kernels could run, else once for all steps.
    steps = x.shape[1] if getattr(layer, "_could_use_gpu_kernel", False) else 1
    return drop(x, (x.shape[0], steps, x.shape[2]), layer.dropout, forward)


@handles("Bidirectional")
def _bidirectional(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    if layer.merge_mode is None:
        raise cannot(layer, "merge_mode None", "use concat, sum, ave or mul")
    there, back = (
        run_inner(layer, inner, inputs, forward)
        for inner in (layer.forward_layer, layer.backward_layer)
    )
    if layer.return_sequences:
        back = tf.reverse(back, [1])
    if layer.merge_mode == "concat":
        return tf.concat([there, back], axis=-1)
    if layer.merge_mode == "mul":
        return there * back
    return (there + back) / (2.0 if layer.merge_mode == "ave" else 1.0)


@handles("TimeDistributed")
def _time_distributed(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    """Run a layer on all steps of all examples as one large batch."""
    x, inner = inputs[0], layer.layer
    batch, length = x.shape[:2]
    _check_inner(layer, x, forward)
    rows = tf.reshape(x, [batch * length, *x.shape[2:]])
    before = forward.importance
    forward.importance = tf.reshape(
        ops.repeat(tf.reshape(before, [batch, 1]), 1, length), [batch * length]
    )
    try:
        y = run_inner(layer, inner, [rows], forward)
    finally:
        forward.importance = before
    return tf.reshape(y, [batch, length, *y.shape[1:]])


def _check_inner(layer: Any, x: Tensor, forward: ForwardPass) -> None:
    mask = mask_of(x, forward)
    if mask is not None and len(mask.shape) > 2:
        raise cannot(layer, "a mask inside of every step", "mask whole steps")
    if getattr(layer.layer, "layers", None) is not None:
        raise cannot(layer, "a model inside", "wrap its layers one by one")
