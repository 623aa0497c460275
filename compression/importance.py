"""Which coordinates a sketch sends more often: importance by tensor, row and column.

Noise costs the least if coordinate i is kept with a probability proportional to
c_i = sqrt(curvature_i) * rms_i. Under SGD a coordinate's movement is the sum of its gradients, and
their mean square is its curvature (the empirical Fisher), so c_i is proportional to the mean
square of the update itself: no gradients and no hand-made table are needed. A large tensor gets
one importance per row and per column besides, since most of what differs inside a kernel differs
by input and by output (as in Adafactor, Shazeer and Stern 2018).

All is kept in small integer codes, half an octave a step, so that both sides sample the same
coordinates on every platform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.stage import Shape

Codes = npt.NDArray[np.uint8]

LEVELS = 32
"""Codes of a tensor's importance: half octaves below the most important one's."""
NEUTRAL = 5
"""The code of a row or column as important as the mean of its tensor."""
_TOP_LEVEL = LEVELS - 1
_TOP_CODE = 15
_PROFILED = 1024  # smaller tensors are not worth a profile
_SPARSE = 8  # nor are tensors with more than one row or column in so many values
_TINY = 1e-12
_FLOOR = 0.2  # of the mean: what did not move in this round may move in the next

# round(2**(code / 2) * unit) as exact integers.
_LEVEL_WEIGHT = np.array([round(2 ** (code / 2)) for code in range(LEVELS)], np.int64)
_CODE_WEIGHT = np.array([round(64 * 2 ** ((c - NEUTRAL) / 2)) for c in range(16)], np.int64)


@dataclass(frozen=True)
class Grid:
    """A tensor seen as a matrix; `profiled`: its rows and columns have codes of their own."""

    rows: int
    columns: int
    profiled: bool

    @property
    def entries(self) -> int:
        """Number of profile codes."""
        return self.rows + self.columns if self.profiled else 0


def grid_of(shape: Shape) -> Grid:
    """Return `shape` as [all but the last axis, last axis], or as one row if that is not worth it.

    What a pruning mask leaves of a tensor is a vector, hence one row.
    """
    size = math.prod(shape)
    if len(shape) > 1 and size >= _PROFILED:
        rows, columns = size // shape[-1], shape[-1]
        if (rows + columns) * _SPARSE <= size:
            return Grid(rows, columns, True)
    return Grid(1, size, False)


@dataclass(frozen=True)
class Allocation:
    """Importance codes: one level a tensor, and the profiles of all tensors in a row.

    A tensor's profile is the codes of its rows, then of its columns.
    """

    levels: bytes
    profile: bytes

    def check(self, shapes: Sequence[Shape]) -> None:
        """Raise WireError unless this is an allocation for tensors of `shapes`."""
        entries = sum(grid_of(shape).entries for shape in shapes)
        if (
            (len(self.levels), len(self.profile)) != (len(shapes), entries)
            or max(self.levels, default=0) > _TOP_LEVEL
            or max(self.profile, default=0) > _TOP_CODE
        ):
            raise WireError("an allocation of importance does not fit the model")

    @property
    def digest(self) -> bytes:
        """What tells two allocations apart."""
        return bytes([len(self.levels) & 0xFF]) + self.levels + self.profile


def flat(shapes: Sequence[Shape]) -> Allocation:
    """Return the allocation that knows nothing: all coordinates are equally important."""
    entries = sum(grid_of(shape).entries for shape in shapes)
    return Allocation(bytes([_TOP_LEVEL]) * len(shapes), bytes([NEUTRAL]) * entries)


def measure(tensors: Sequence[Array]) -> Allocation:
    """Return the importance that the finite float32 `tensors` of one update show."""
    peak = max((float(np.abs(t).max(initial=0)) for t in tensors), default=0.0)
    if not _TINY < peak < 1 / _TINY:  # squares would leave float32's range
        tensors = [t / np.float32(peak or 1) for t in tensors]
    energies = [float(np.vdot(t, t)) / max(1, t.size) for t in tensors]
    largest = max(energies, default=0.0)
    levels, profile = [], []
    for tensor, energy in zip(tensors, energies, strict=True):
        levels.append(_level(energy, largest))
        grid = grid_of(tensor.shape)
        if grid.profiled:
            matrix = tensor.reshape(grid.rows, grid.columns)
            squares = np.einsum("ij,ij->i", matrix, matrix), np.einsum("ij,ij->j", matrix, matrix)
            for sums, count in zip(squares, (grid.columns, grid.rows), strict=True):
                profile.append(_codes(sums / count, energy))
    return Allocation(bytes(levels), b"".join(codes.tobytes() for codes in profile))


def _level(energy: float, largest: float) -> int:
    if energy <= 0:
        return 0 if largest > 0 else _TOP_LEVEL
    return max(0, _TOP_LEVEL + round(2 * math.log2(energy / largest)))


def _codes(energies: Array, mean: float) -> Codes:
    if mean <= 0:
        return np.full(energies.shape, NEUTRAL, np.uint8)
    relative = (1 - _FLOOR) * (energies / mean) + _FLOOR
    codes: Codes = np.clip(np.rint(2 * np.log2(relative)) + NEUTRAL, 0, _TOP_CODE).astype(np.uint8)
    return codes


def report_size(shapes: Sequence[Shape], slot: int, slots: int) -> int:
    """Return the bytes of the report that the client in `slot` makes."""
    return len(shapes) + (_share(shapes, slot, slots) + 1) // 2


def report(own: Allocation, slot: int, slots: int) -> bytes:
    """Return all levels (1 byte each) and every `slots`-th code of the profile (4 bits each)."""
    share = np.frombuffer(own.profile, np.uint8)[slot % slots :: slots]
    pairs = np.zeros(len(share) + len(share) % 2, np.uint8)
    pairs[: len(share)] = share
    return own.levels + (pairs[::2] | pairs[1::2] << 4).tobytes()


@dataclass(frozen=True)
class Report:
    """What the client in `slot` says: all levels, and its share of the profile's codes."""

    slot: int
    slots: int
    levels: bytes
    share: bytes


def read_report(data: bytes, shapes: Sequence[Shape], slot: int, slots: int) -> Report:
    """Return the report in exactly `report_size` bytes; raise WireError if it is none."""
    raw = np.frombuffer(data, np.uint8)
    levels, pairs = raw[: len(shapes)], raw[len(shapes) :]
    share = np.stack([pairs & 15, pairs >> 4], axis=1).ravel()
    count = _share(shapes, slot, slots)
    if (levels > _TOP_LEVEL).any() or share[count:].any():
        raise WireError("a report of importance is out of range")
    return Report(slot, slots, levels.tobytes(), share[:count].tobytes())


def merge(
    before: Allocation | None, reports: Sequence[Report], shapes: Sequence[Shape]
) -> Allocation | None:
    """Return the mean of the reported levels and the profile with all reported shares put in.

    What nobody reported stays as it was `before`, or neutral. The order of reports does not matter
    unless two come from the same slot.
    """
    if not reports:
        return before
    profile = np.frombuffer((before or flat(shapes)).profile, np.uint8).copy()
    levels = np.zeros(len(shapes), np.int64)
    for one in reports:
        levels += np.frombuffer(one.levels, np.uint8)
        profile[one.slot % one.slots :: one.slots] = np.frombuffer(one.share, np.uint8)
    mean = (levels + len(reports) // 2) // len(reports)
    return Allocation(mean.astype(np.uint8).tobytes(), profile.tobytes())


def _share(shapes: Sequence[Shape], slot: int, slots: int) -> int:
    entries = sum(grid_of(shape).entries for shape in shapes)
    return len(range(slot % slots, entries, slots))


def restrict(allocation: Allocation, whole: Sequence[Shape], shapes: Sequence[Shape]) -> Allocation:
    """Return the allocation for `shapes`: a mask that makes a tensor a vector ends its profile."""
    kept, at = [], 0
    for before, after in zip(whole, shapes, strict=True):
        end = at + grid_of(before).entries
        if before == after:
            kept.append(allocation.profile[at:end])
        at = end
    return Allocation(allocation.levels, b"".join(kept))


def weights(
    level: int, grid: Grid, codes: Codes
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Return the weights by row and, if the tensor is profiled, by column.

    A coordinate's weight is the product of both.
    """
    if not grid.profiled:
        return _LEVEL_WEIGHT[level : level + 1] * 64 * 64, None
    by = _CODE_WEIGHT[codes]
    return _LEVEL_WEIGHT[level] * by[: grid.rows], by[grid.rows :]
