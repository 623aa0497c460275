"""How tensors that do not take an update's codec travel beside it: near-lossless, or as values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.chain import chain
from featherfed.compression.exchange.masks import Mask
from featherfed.compression.stage import Shape
from featherfed.compression.stages.floats import Float8, Float16

_FLOAT16 = chain(Float16())
_FLOAT8 = chain(Float8())


class NearLossless:
    """Encodes the changes of all values in `float16`."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._shapes = shapes

    def encode(self, tensors: Sequence[Array]) -> bytes:
        """Return the update's tensors as bytes."""
        return _FLOAT16.encode(tensors)

    def decode(self, data: bytes) -> list[Array]:
        """Return the update's tensors; raise WireError otherwise."""
        return _FLOAT16.decode(data, self._shapes)

    def coverage(self) -> list[Mask | None]:
        """Return None for every tensor: all values are sent."""
        return [None] * len(self._shapes)

    def limit(self) -> int:
        """Return the most bytes that `encode` returns."""
        return _FLOAT16.limit(self._shapes)


class StatisticValues:
    """Encodes the new values of statistics; a client sends all of them or a share.

    In `float8`, or if they are `whole` in `float16`: where a mean is many deviations from zero, and
    all clients round it alike, 8 bits are too coarse for a network's final statistics.

    Values, as changes would be too coarse: if a variance falls from 1 to 0.01, the rounding error
    of the change -0.99 may exceed 0.01.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        base: Array | None,
        *,
        sent: bool,
        slot: int,
        parts: int,
        whole: bool,
    ) -> None:
        """`base`: the values before the update, float32 [n], zeros if None.

        If `sent`, this client sends the values number slot, slot + parts, ...
        """
        self._codec = _FLOAT16 if whole else _FLOAT8
        self._shapes = shapes
        self._size = sum(math.prod(shape) for shape in shapes)
        self._base = np.zeros(self._size, np.float32) if base is None else base
        self._is_sent = sent and self._size > 0
        self._own = slice(slot % parts, None, parts)
        self._sends_all = sent and parts == 1

    def encode(self, tensors: Sequence[Array]) -> bytes:
        """Return this client's part of the new values as bytes, none if nothing is sent."""
        if not self._is_sent:
            return b""
        values = self._base + np.concatenate([tensor.ravel() for tensor in tensors])
        return self._codec.encode([values[self._own]])

    def decode(self, data: bytes) -> list[Array]:
        """Return the changes, zero where nothing was sent; raise WireError otherwise."""
        update = np.zeros(self._size, np.float32)
        shapes = [update[self._own].shape] if self._is_sent else []
        for values in self._codec.decode(data, shapes):
            update[self._own] = values - self._base[self._own]
        return self._split(update)

    def coverage(self) -> list[Mask | None]:
        """Return by tensor where a value is sent, None where all are."""
        if self._sends_all:
            return [None] * len(self._shapes)
        covered = np.zeros(self._size, np.bool_)
        if self._is_sent:
            covered[self._own] = True
        return list(self._split(covered))

    def _split(self, values: Any) -> list[Any]:
        """Return one vector over all tensors as tensors of their shapes."""
        if not self._shapes:
            return []
        ends = np.cumsum([math.prod(shape) for shape in self._shapes], dtype=np.int64)
        parts = np.split(values, ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]


OtherTensors = NearLossless | StatisticValues
