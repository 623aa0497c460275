"""`kmeans(bits)`: every value becomes the nearest of 2**bits centroids (Han et al. 2016).

It does to updates what TFMOT's clustering does to weights, with new centroids for every tensor of
every update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.stage import Form, Shape, Values, symbols
from featherfed.compression.traits import Traits

Centroids = npt.NDArray[np.float64]

_ITERATIONS = 20
_DRAWN = 65536  # values that the centroids are computed from


@dataclass(frozen=True)
class KMeans:
    """One-dimensional k-means (Lloyd 1957) on each tensor; the centroids travel as float32."""

    bits: int

    name: ClassVar[str] = "kmeans"
    traits: ClassVar[Traits] = Traits(error_feedback=True, dense=True)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise CodecError(f"kmeans needs 1 to 8 bits, got {self.bits!r}")

    @property
    def output(self) -> Form:
        """Symbols of `bits` bits."""
        return symbols(self.bits)

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return each value's centroid number; the side information is the rising centroids."""
        flat = x.ravel()
        centroids = _centroids(flat, 2**self.bits).astype("<f4")
        borders = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
        codes: Values = np.searchsorted(borders, flat).astype(np.uint8)
        return codes, centroids.tobytes()

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return the centroid of every code."""
        if len(side) != self.side_limit(shape):
            raise WireError(f"kmeans needs {self.side_limit(shape)} side bytes, got {len(side)}")
        centroids = np.frombuffer(side, "<f4")
        if not np.isfinite(centroids).all():
            raise WireError("kmeans centroid is out of range")
        x: Array = centroids[values].astype(np.float32)
        return x.reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return four bytes a centroid."""
        return 4 << self.bits


def _centroids(flat: Array, number: int) -> Centroids:
    """Return `number` centroids in rising order; zeros if there are no values."""
    if not flat.size:
        return np.zeros(number)
    # Between equally filled cells and equally wide ones lies the best start.
    places = (np.arange(number) + 0.5) / number
    low, high = float(flat.min()), float(flat.max())
    drawn = flat[:: -(-flat.size // _DRAWN)]
    start = (np.quantile(drawn, places) + low + (high - low) * places) / 2
    return np.maximum.accumulate(lloyd(drawn, start, _ITERATIONS))


def lloyd(values: Array, centroids: Centroids, iterations: int) -> Centroids:
    """Return rising float64 [k] `centroids` after so many steps of k-means in one dimension.

    A centroid that no value is nearest to stays where it is.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(iterations):
        middles = (centroids[1:] + centroids[:-1]) / 2
        edges = np.concatenate([[0], np.searchsorted(ordered, middles), [ordered.size]])
        sizes = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        centroids = np.where(sizes > 0, means, centroids)
    return centroids
