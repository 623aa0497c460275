"""Stratified sampling of the coordinates that a sketch sends (steps 1 and 2 in sketch.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.context import Context
from featherfed.compression.errors import WireError
from featherfed.compression.importance import Allocation, Integers, grid_of, importance_weights
from featherfed.compression.key import Key
from featherfed.compression.stage import Shape


class Sample(NamedTuple):
    """The coordinates of one tensor that a sketch sends.

    `values`: their range in the list of all values that are sent. `positions`: int64 indices into
    the flattened tensor. `gain`, `root` (float32): a value is multiplied by `gain` before it is
    sent and divided by `root` on arrival; gain / root is 1 / its probability of being sent.
    """

    tensor: int
    values: slice
    positions: Integers
    gain: Array
    root: Array


class Sampler:
    """Draws coordinates from a line on which each is as long as its importance weight."""

    def __init__(self, allocation: Allocation, shapes: Sequence[Shape]) -> None:
        self._rows: list[Integers] = []
        self._columns: list[Integers | None] = []
        self._sizes = [math.prod(shape) for shape in shapes]
        profile = np.frombuffer(allocation.profile, np.uint8)
        at = total = 0
        ends = []
        for shape, level in zip(shapes, allocation.levels, strict=True):
            grid = grid_of(shape)
            codes = profile[at : at + grid.entries]
            at += grid.entries
            rows, columns = importance_weights(level, grid, codes)
            length = grid.columns if columns is None else int(columns.sum())
            total += int(rows.sum()) * length
            if total >= 2**62:
                raise WireError("the model is too large for this allocation of importance")
            self._rows.append(rows)
            self._columns.append(columns)
            ends.append(rows * length)
        self._total = total
        self._ends = np.cumsum(np.concatenate([*ends, np.zeros(0, np.int64)]))

    def draw(self, count: int, context: Context) -> Iterator[Sample]:
        """Yield the `count` coordinates that are sent, as one sample per tensor that has any."""
        if not count:
            return
        points, widths = self._points(count, context.key.child("points"), context)
        row = np.searchsorted(self._ends, points, side="right")
        begins = np.concatenate([np.zeros(1, np.int64), self._ends])
        within = points - begins[row]
        first = 0
        for tensor, (rows, columns) in enumerate(zip(self._rows, self._columns, strict=True)):
            values = slice(*np.searchsorted(row, [first, first + len(rows)]))
            own_row = row[values] - first
            first += len(rows)
            if values.start == values.stop:
                continue
            weight = rows[own_row]
            column = within[values] // weight
            width = self._sizes[tensor] // len(rows)
            if columns is not None:
                column = np.searchsorted(np.cumsum(columns), column, side="right")
                weight = weight * columns[column]
            root = np.sqrt(weight.astype(np.float64)).astype(np.float32)
            gain = (widths[values] / root).astype(np.float32)
            yield Sample(tensor, values, own_row * width + column, gain, root)

    def _points(self, count: int, key: Key, context: Context) -> tuple[Integers, Integers]:
        """Return a point of the line in each of `count` strata, rising, and the strata's widths."""
        assert count <= self._total, "every coordinate weighs more than one"
        quotient, rest = divmod(self._total, count)
        stratum = np.arange(count, dtype=np.int64)
        widths = quotient + (stratum < rest)
        begins = stratum * quotient + np.minimum(stratum, rest)
        draw = (key.words(count) >> np.uint64(32)) + np.uint64(
            (context.slot % context.slots) * (2**32 // context.slots)
        )
        draw &= np.uint64(2**32 - 1)
        # floor(width * draw / 2**32) without a product of more than 64 bits.
        wide = widths.astype(np.uint64)
        high, low = wide >> np.uint64(32), wide & np.uint64(2**32 - 1)
        offset = high * draw + ((low * draw) >> np.uint64(32))
        return begins + offset.astype(np.int64), widths
