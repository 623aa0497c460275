"""Stratified sampling of the coordinates that a sketch sends (steps 1 and 2 in sketch.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.context import Context
from featherfed.compression.errors import WireError
from featherfed.compression.importance import Allocation, Integers, grid_of, importance_weights
from featherfed.compression.key import Words
from featherfed.compression.stage import Shape

_BLOCK = 16384  # values that are drawn at once: what is computed of them fits into a cache
_TABLE_SHARE = 4  # entries per value for which a table is faster than a search


class Sample(NamedTuple):
    """The coordinates of one tensor that a sketch sends.

    `values`: their range in the list of all values that are sent. `positions`: int64 indices into
    the flattened tensor, rising; one may come again. `root`: float32, the square roots of their
    weights. A value is multiplied by the width of its stratum and divided by `root`
    before it is sent, and divided by `root` on arrival; width / root**2 is 1 / its probability of
    being sent.
    """

    tensor: int
    values: slice
    positions: Integers
    root: Array


@lru_cache(2)
def sampler_of(allocation: Allocation, shapes: tuple[Shape, ...]) -> Sampler:
    """Return the sampler of an allocation, the same for all updates of a round."""
    return Sampler(allocation, shapes)


class Sampler:
    """Draws coordinates from a line on which each is as long as its importance weight."""

    def __init__(self, allocation: Allocation, shapes: Sequence[Shape]) -> None:
        self._rows: list[Integers] = []
        self._columns: list[Integers | None] = []
        self._finders: tuple[int, dict[int, Callable[[Integers], Integers]]] = 0, {}
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
        self._begins = np.concatenate([np.zeros(1, np.int64), self._ends])
        self._first_rows = np.cumsum([0, *map(len, self._rows)])
        self._weights = np.concatenate([*self._rows, np.zeros(0, np.int64)])

    def draw(self, count: int, context: Context) -> Iterator[Sample]:
        """Yield the `count` coordinates that are sent, in samples of one tensor each."""
        begin = 0
        for words in context.key.child("points").blocks(count, _BLOCK):
            points = self._points(words, begin, count, context)
            row = _cells(self._ends, points)
            bounds = np.searchsorted(row, self._first_rows).tolist()
            points -= self._begins[row]
            weights = self._weights[row]
            points //= weights
            parts = [slice(*bounds[tensor : tensor + 2]) for tensor in range(len(self._rows))]
            for tensor, (own, columns) in enumerate(zip(parts, self._columns, strict=True)):
                if columns is None or own.start == own.stop:
                    continue
                column = self._column_finder(tensor, count)(points[own])
                weights[own] *= columns[column]
                position = row[own] - self._first_rows[tensor]
                position *= len(columns)
                np.add(position, column, out=points[own])
            roots = np.sqrt(weights.astype(np.float64)).astype(np.float32)
            for tensor, own in enumerate(parts):
                if own.start < own.stop:
                    values = slice(begin + own.start, begin + own.stop)
                    yield Sample(tensor, values, points[own], roots[own])
            begin += len(points)

    def widths(self, values: slice, count: int) -> Integers:
        """Return the widths of those `values` of `count` strata, int64; the first may be wider."""
        quotient, rest = divmod(self._total, count)
        widths = np.full(values.stop - values.start, quotient, np.int64)
        widths[: max(0, rest - values.start)] += 1
        return widths

    def mean_width(self, count: int) -> float:
        """Return the mean width of `count` strata; none differs from it by 1 or more."""
        return self._total / count

    def _points(self, words: Words, begin: int, count: int, context: Context) -> Integers:
        """Return a point of the line in each stratum from `begin` on; overwrites `words`."""
        assert count <= self._total, "every coordinate weighs more than one"
        quotient, rest = divmod(self._total, count)
        words >>= np.uint64(32)
        words += np.uint64((context.slot % context.slots) * (2**32 // context.slots))
        words &= np.uint64(2**32 - 1)
        wider = min(max(0, rest - begin), len(words))
        _scale(words[:wider], quotient + 1)
        _scale(words[wider:], quotient)
        points = words.view(np.int64)
        stratum = np.arange(begin, begin + len(points), dtype=np.int64)
        points += np.minimum(stratum, rest)
        stratum *= quotient
        points += stratum
        return points

    def _column_finder(self, tensor: int, count: int) -> Callable[[Integers], Integers]:
        """Return what tells for points of a row of weight 1 which columns they are in.

        It is the same for all updates of a round, and made once; of one `count` only, as a peer
        may send many.
        """
        known, finders = self._finders
        if known != count:
            finders = {}
            self._finders = count, finders
        if tensor not in finders:
            finders[tensor] = self._make_column_finder(tensor, count)
        return finders[tensor]

    def _make_column_finder(self, tensor: int, count: int) -> Callable[[Integers], Integers]:
        columns = self._columns[tensor]
        assert columns is not None
        ends = np.cumsum(columns)
        expected = count * int(self._rows[tensor].sum()) * int(ends[-1]) // self._total
        if ends[-1] > _TABLE_SHARE * expected:
            return lambda points: np.searchsorted(ends, points, side="right")
        return np.repeat(np.arange(len(columns)), columns).__getitem__


def _scale(draw: Words, width: int) -> None:
    """Make of `draw`, below 2**32, floor(width * draw / 2**32) without a longer product."""
    high, low = divmod(width, 2**32)
    above = draw * np.uint64(high) if high else None
    draw *= np.uint64(low)
    draw >>= np.uint64(32)
    if above is not None:
        draw += above


def _cells(ends: Integers, points: Integers) -> Integers:
    """Return for each of rising `points` the number of the cell that it is in, by cells' `ends`."""
    first, last = np.searchsorted(ends, points[[0, -1]], side="right")
    passed = ends[first:last]
    if len(points) < len(passed):
        return np.searchsorted(ends, points, side="right")
    counts = np.diff(np.searchsorted(points, passed), prepend=0, append=len(points))
    return np.repeat(np.arange(first, last + 1), counts)
