"""Masks of time steps: which steps of a sequence layers must skip, as Keras hands them on.

A Masking layer, or an Embedding with mask_zero, marks the steps that only fill a sequence up.
Keras attaches the mask to the output and passes it from layer to layer, by a rule that each layer
class has in `compute_mask`; the same rules decide here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.ops import Tensor


def pass_mask(layer: Any, inputs: Sequence[Tensor], y: Tensor, forward: ForwardPass) -> None:
    """Give a layer's output the mask that Keras gives it, if any."""
    mask = _output_mask(layer, inputs, forward) if layer.supports_masking else None
    if mask is None:
        forward.masks.pop(y.ref(), None)  # a layer may return its input as it is
    else:
        forward.masks[y.ref()] = mask


def _output_mask(layer: Any, inputs: Sequence[Tensor], forward: ForwardPass) -> Tensor | None:
    masks = [forward.masks.get(x.ref()) for x in inputs]
    if _takes_a_list(layer):
        return layer.compute_mask(list(inputs), masks)
    return layer.compute_mask(inputs[0], masks[0])


def _takes_a_list(layer: Any) -> bool:
    return hasattr(layer, "_merge_function")


def mask_of(x: Tensor, forward: ForwardPass) -> Tensor | None:
    """Return the mask of a sequence [B, T, ...] as float32 [B, T], 1 for what counts, or None."""
    mask = forward.masks.get(x.ref())
    return None if mask is None else tf.cast(mask, tf.float32)
