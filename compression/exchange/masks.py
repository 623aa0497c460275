"""Pruning masks, derived from the shared weights by both sides, so that none is ever sent.

The rule is TFMOT's (Zhu and Gupta 2017): per tensor, the round(size * (1 - sparsity)) values
largest in magnitude are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.sparse import Tensor, dense
from featherfed.compression.stage import Shape

Mask = npt.NDArray[np.bool_]
Masks = Sequence[Mask | None]
"""One mask per tensor, True where a value is kept; None where all are."""


def magnitude_mask(tensor: Array, sparsity: float) -> Mask:
    """Return a mask of `tensor`'s shape; ties at the threshold are kept."""
    if not tensor.size:
        return np.ones(tensor.shape, np.bool_)
    magnitude = np.abs(tensor)
    keep = max(1, round(tensor.size * (1 - sparsity)))
    threshold = np.partition(magnitude, tensor.size - keep, axis=None)[tensor.size - keep]
    mask: Mask = magnitude >= threshold
    return mask


def magnitude_masks(manifest: Manifest, weights: Sequence[Array], sparsity: float) -> Masks:
    """Return the masks of one model version for a target sparsity in [0, 1)."""
    return [
        magnitude_mask(tensor, sparsity) if spec.prunable and sparsity > 0 else None
        for spec, tensor in zip(manifest, weights, strict=True)
    ]


def mask_weights(weights: Sequence[Array], masks: Masks) -> list[Array]:
    """Return the weights with every value that is not kept set to zero."""
    return [
        w if m is None else np.where(m, w, np.float32(0))
        for w, m in zip(weights, masks, strict=True)
    ]


def no_masks(manifest: Manifest) -> Masks:
    """Return masks that keep all values of all tensors."""
    return [None] * len(manifest)


def kept_shapes(manifest: Manifest, masks: Masks) -> list[Shape]:
    """Return the shapes of the tensors that `kept_values` returns."""
    return [
        spec.shape if mask is None else (int(mask.sum()),)
        for spec, mask in zip(manifest, masks, strict=True)
    ]


def kept_values(tensors: Sequence[Array], masks: Masks) -> list[Array]:
    """Return of each tensor with a mask the kept values as a vector, other tensors whole."""
    return [t if m is None else t[m] for t, m in zip(tensors, masks, strict=True)]


def expand_kept(values: Sequence[Tensor], masks: Masks) -> list[Tensor]:
    """Return tensors from their `kept_values`, with zeros elsewhere."""
    return [v if m is None else _expand(dense(v), m) for v, m in zip(values, masks, strict=True)]


def _expand(values: Array, mask: Mask) -> Array:
    tensor = np.zeros(mask.shape, np.float32)
    tensor[mask] = values
    return tensor


def sparsity_of(manifest: Manifest, weights: Sequence[Array]) -> float:
    """Return the fraction of exact zeros among the prunable values, 0 if none are prunable."""
    prunable = [w for s, w in zip(manifest, weights, strict=True) if s.prunable]
    total = sum(w.size for w in prunable)
    return float(sum(int((w == 0).sum()) for w in prunable) / total) if total else 0.0
