"""Updates of the small model, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from support.models import MANIFEST

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec


def update() -> bytes:
    """Return the payload of an update from the first weights halfway to one."""
    weights = initial_weights(MANIFEST, 0)
    return encode_update(parse_codec("float32"), MANIFEST, [0.5 * (1 - w) for w in weights]).payload


def constant(value: float) -> list[Array]:
    """Return an update in which every value is `value`."""
    return [np.full(spec.shape, np.float32(value)) for spec in MANIFEST]


def random_update(seed: int, scale: float = 0.01) -> list[Array]:
    draw = np.random.default_rng(seed)
    return [(scale * draw.standard_normal(s.shape)).astype(np.float32) for s in MANIFEST]


def honest(count: int) -> dict[str, list[Array]]:
    """Return small random updates of the clients c0, c1, ..."""
    return {f"c{i}": random_update(i) for i in range(count)}


def flat(tensors: Sequence[Array]) -> Array:
    """Return all values in one vector."""
    return np.concatenate([t.ravel() for t in tensors])
