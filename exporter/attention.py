"""Attention of several heads over sequences (Vaswani et al. 2017), as Keras computes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from featherfed.exporter import ops
from featherfed.exporter.activations import softmax
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.handlers import cannot, check_constraints, handles
from featherfed.exporter.masks import mask_of
from featherfed.exporter.noise import drop
from featherfed.exporter.ops import Tensor

_NEVER = -1e9  # Keras adds this to the score of what must not be attended to


@handles("MultiHeadAttention")
def _attention(layer: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    given = forward.arguments
    query, value = given["query"], given["value"]
    key = value if given.get("key") is None else given["key"]
    _check(layer, given, (query, key, value))
    for dense in (layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense):
        forward.penalize(dense, layer.name)
        check_constraints(layer, dense)
    queries = _heads(layer._query_dense, query, forward) * (1.0 / math.sqrt(float(layer._key_dim)))
    keys, values = (
        _heads(layer._key_dense, key, forward),
        _heads(layer._value_dense, value, forward),
    )
    scores = ops.batch_matmul(queries, keys, transpose_b=True)
    shares = _shares(scores, layer, _mask(given, key, forward))
    shape = (query.shape[0], layer._num_heads, *scores.shape[1:])
    shares = drop(tf.reshape(shares, shape), shape, layer._dropout, forward)
    seen = ops.batch_matmul(tf.reshape(shares, scores.shape), values)
    return _joined(layer, seen, query.shape[0], forward)


def _check(layer: Any, given: Mapping[str, Any], sequences: tuple[Tensor, ...]) -> None:
    if given.get("return_attention_scores"):
        raise cannot(layer, "return_attention_scores", "leave it out")
    if any(len(x.shape) != 3 for x in sequences):
        raise cannot(
            layer, "attention over several axes", "reshape its inputs to [steps, features]"
        )
    if len(layer._output_dense.kernel.shape) != 3:
        raise cannot(layer, "an output_shape of several axes", "give one number")


def _heads(dense: Any, x: Tensor, forward: ForwardPass) -> Tensor:
    """Return a projection of x [B, T, D], head by head: [B * heads, T, size]."""
    batch, length, width = x.shape
    kernel = forward.value(dense.kernel)
    heads, size = kernel.shape[1:]
    y = ops.matmul(tf.reshape(x, [-1, width]), tf.reshape(kernel, [width, heads * size]))
    if dense.bias is not None:
        y = ops.add_bias(y, tf.reshape(forward.value(dense.bias), [-1]))
    y = tf.transpose(tf.reshape(y, [batch, length, heads, size]), [0, 2, 1, 3])
    return tf.reshape(y, [batch * heads, length, size])


def _joined(layer: Any, seen: Tensor, batch: int, forward: ForwardPass) -> Tensor:
    """Return the output [B, T, D] of what the heads have seen, [B * heads, T, size]."""
    dense = layer._output_dense
    kernel = forward.value(dense.kernel)
    heads, size, width = kernel.shape
    length = seen.shape[1]
    rows = tf.transpose(tf.reshape(seen, [batch, heads, length, size]), [0, 2, 1, 3])
    y = ops.matmul(tf.reshape(rows, [-1, heads * size]), tf.reshape(kernel, [heads * size, width]))
    if dense.bias is not None:
        y = ops.add_bias(y, forward.value(dense.bias))
    return tf.reshape(y, [batch, length, width])


def _shares(scores: Tensor, layer: Any, mask: Tensor | None) -> Tensor:
    """Return what each query takes of each value: a softmax over scores [B * heads, T, S]."""
    if mask is None:
        return softmax(scores)
    never = ops.repeat((1.0 - mask) * _NEVER, 1, layer._num_heads)
    return softmax(scores + tf.reshape(never, scores.shape))


def _mask(given: Mapping[str, Any], key: Tensor, forward: ForwardPass) -> Tensor | None:
    """Return what may be attended to, 1 or 0, as float32 [B, 1, T, S]; None if all may."""
    query, value = given["query"], given["value"]
    batch, rows, columns = query.shape[0], query.shape[1], value.shape[1]
    shape = [batch, rows, columns]
    masks = []
    if (of_query := mask_of(query, forward)) is not None:
        masks.append(tf.reshape(of_query, [batch, rows, 1]))
    masks += [
        tf.reshape(of_value, [batch, 1, columns])
        for x in ([value] if key is value else [value, key])
        if (of_value := mask_of(x, forward)) is not None
    ]
    if given.get("use_causal_mask"):
        masks.append(tf.constant(np.tri(rows, columns, dtype=np.float32)[None]))
    if given.get("attention_mask") is not None:
        masks.append(_given_mask(given["attention_mask"], bool(masks), shape))
    if not masks:
        return None
    allowed = masks[0]
    for mask in masks[1:]:
        allowed = allowed * mask
    return tf.reshape(ops.broadcast(allowed, shape), [batch, 1, rows, columns])


def _given_mask(mask: Any, with_others: bool, shape: list[int]) -> Tensor:
    """Return an attention_mask as float32; beside other masks, all but 0 counts as 1."""
    if with_others:
        mask = tf.cast(mask, tf.bool)
    mask = tf.cast(mask, tf.float32)
    return tf.reshape(mask, [*[1] * (3 - len(mask.shape)), *mask.shape])
