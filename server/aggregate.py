"""FedAvg (McMahan et al. 2017): the mean of the clients' updates weighted by `num_examples`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from featherfed.compression.manifest import Array, Manifest


@dataclass(frozen=True)
class Mean:
    """A weighted mean under way: float32 `totals` of one model, whatever the number of clients."""

    totals: tuple[Array, ...]
    num_examples: int
    """Examples of all updates that will be folded in."""


def start(manifest: Manifest, num_examples: Iterable[int]) -> Mean:
    """Return the empty mean over clients with these numbers of examples, each at least 1."""
    return Mean(tuple(np.zeros(s.shape, np.float32) for s in manifest), sum(num_examples))


def fold(mean: Mean, update: Iterable[Array], num_examples: int) -> Mean:
    """Return `mean` with one update added; the totals are reused, not copied.

    The order of folding fixes the last bit of the result, so callers fold in client order.
    """
    weight = np.float32(num_examples / mean.num_examples)
    for total, tensor in zip(mean.totals, update, strict=True):
        total += weight * tensor
    return mean
