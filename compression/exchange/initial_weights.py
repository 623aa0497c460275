"""Model version 0, drawn from a seed bit-exactly on every platform, so it is never downloaded.

Only integers, exact conversions and one float32 product are used. Philox is a counter-based
generator (Salmon et al. 2011) whose raw output numpy keeps stable.
"""

from __future__ import annotations

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest, TensorSpec, Uniform

_AT_ONCE = 2**20  # values


def initial_weights(manifest: Manifest, seed: int) -> list[Array]:
    """Return float32 tensors in manifest order, each drawn from its own stream of `seed`."""
    return [_draw(spec, seed, number) for number, spec in enumerate(manifest)]


def _draw(spec: TensorSpec, seed: int, stream: int) -> Array:
    if not isinstance(spec.initial, Uniform):
        return np.full(spec.shape, spec.initial.value, np.float32)
    key = np.array([seed, stream], np.uint64)  # a list would pass through float64 from 2**63 on
    words = np.random.Philox(key=key)
    weights = np.empty(spec.size, np.float32)
    for at in range(0, spec.size, _AT_ONCE):  # all at once would take six times their memory
        raw = words.random_raw(min(_AT_ONCE, spec.size - at))
        integers = (raw >> np.uint64(40)).astype(np.int64) - 2**23  # 24 bits, exact in float32
        unit = integers.astype(np.float32) * np.float32(2.0**-23)
        weights[at : at + len(raw)] = unit * np.float32(spec.initial.limit)
    return weights.reshape(spec.shape)
