"""Which coordinates a sketch sends more often: importance by tensor, row and column.

Noise does the least harm if coordinate i is sent with a probability proportional to
c_i = sqrt(curvature_i) * rms_i. Under SGD a coordinate's movement is the sum of its gradients, and
their mean square is its curvature (the empirical Fisher), so c_i is proportional to the mean
square of the update itself: no gradients and no hand-made table are needed. A large tensor also
gets one importance per row and per column, since most of what differs inside a kernel differs by
input and by output (as in Adafactor, Shazeer and Stern 2018).

Importance is kept in small integer codes on a logarithmic scale, two codes per factor of 2, so
that both sides sample the same coordinates on every platform.

A report is a client's word. Levels are reported by all and merged by their median, which a minority
cannot move beyond what the others say (Yin et al. 2018). A code of a row or column is one client's
alone, so it counts only between half and four times the mean: a lie then costs that client's share
of the coordinates some noise, and starves none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.stage import Shape, pack, symbols, unpack

Codes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

LEVELS = 32
"""Number of codes of a tensor's importance; the largest is the most important tensor's."""
NEUTRAL = 5
"""The code of a row or column as important as the mean of its tensor."""
_TOP_LEVEL = LEVELS - 1
_TOP_CODE = 15
_MIN_PROFILED = 1024  # values: smaller tensors are not worth a profile
_MIN_VALUES_PER_CODE = 8  # nor are tensors whose profile would have more codes than that
_TINY = 1e-12
_FLOOR = 0.2  # of the mean: a row that did not move in this round may move in the next
_LEAST_CODE, _MOST_CODE = NEUTRAL - 2, NEUTRAL + 4  # half and four times the tensor's mean
_COARSE_BITS, _COARSE_STEP = 2, 2  # each code a factor of 2 from the next, within these bounds
_LEAST_SHARE = 4  # a coordinate is sent at least 1/4 as often as the mean of all

# round(2**(code / 2) * unit) as exact integers.
_LEVEL_WEIGHT = np.array([round(2 ** (code / 2)) for code in range(LEVELS)], np.int64)
_CODE_WEIGHT = np.array([round(64 * 2 ** ((c - NEUTRAL) / 2)) for c in range(16)], np.int64)


@dataclass(frozen=True)
class Grid:
    """A tensor seen as a matrix, whose rows and columns have codes of their own if `profiled`."""

    rows: int
    columns: int
    profiled: bool

    @property
    def entries(self) -> int:
        """Number of codes in the tensor's profile."""
        return self.rows + self.columns if self.profiled else 0


@lru_cache(1024)
def grid_of(shape: Shape) -> Grid:
    """Return `shape` as [all but the last axis, last axis], or as one row without a profile.

    The values that a pruning mask keeps of a tensor are a vector, hence one row.
    """
    size = math.prod(shape)
    if len(shape) > 1 and size >= _MIN_PROFILED:
        rows, columns = size // shape[-1], shape[-1]
        if (rows + columns) * _MIN_VALUES_PER_CODE <= size:
            return Grid(rows, columns, True)
    return Grid(1, size, False)


@dataclass(frozen=True)
class Allocation:
    """The importance of all coordinates of a model, as codes of one byte each.

    `levels`: one code per tensor. `profile`: the profiles of all tensors one after the other; a
    tensor's profile is the codes of its rows, then of its columns, empty for small tensors.
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
        """Bytes that differ between different allocations for one model."""
        return bytes([len(self.levels) & 0xFF]) + self.levels + self.profile


def equal_importance(shapes: Sequence[Shape]) -> Allocation:
    """Return the allocation in which all coordinates are equally important."""
    entries = sum(grid_of(shape).entries for shape in shapes)
    return Allocation(bytes([_TOP_LEVEL]) * len(shapes), bytes([NEUTRAL]) * entries)


def measure_importance(tensors: Sequence[Array]) -> Allocation:
    """Return the importance of coordinates by the squares of one update (finite float32)."""
    peak = max((float(np.abs(t).max(initial=0)) for t in tensors), default=0.0)
    if not _TINY < peak < 1 / _TINY:  # squares would leave float32's range
        tensors = [t / np.float32(peak or 1) for t in tensors]
    energies = [float(np.vdot(t, t)) / max(1, t.size) for t in tensors]
    largest = max(energies, default=0.0)
    levels, profile = [], []
    for tensor, energy in zip(tensors, energies, strict=True):
        levels.append(_level_code(energy, largest))
        grid = grid_of(tensor.shape)
        if grid.profiled:
            matrix = tensor.reshape(grid.rows, grid.columns)
            squares = np.einsum("ij,ij->i", matrix, matrix), np.einsum("ij,ij->j", matrix, matrix)
            for sums, count in zip(squares, (grid.columns, grid.rows), strict=True):
                profile.append(_profile_codes(sums / count, energy))
    return Allocation(bytes(levels), b"".join(codes.tobytes() for codes in profile))


def _level_code(energy: float, largest: float) -> int:
    """Return a tensor's code from its mean square and the largest one of all tensors."""
    if energy <= 0:
        return 0 if largest > 0 else _TOP_LEVEL
    return max(0, _TOP_LEVEL + round(2 * math.log2(energy / largest)))


def _profile_codes(energies: Array, mean: float) -> Codes:
    """Return the codes of rows or columns from their mean squares and that of the tensor."""
    if mean <= 0:
        return np.full(energies.shape, NEUTRAL, np.uint8)
    relative = (1 - _FLOOR) * (energies / mean) + _FLOOR
    codes: Codes = np.clip(np.rint(2 * np.log2(relative)) + NEUTRAL, 0, _TOP_CODE).astype(np.uint8)
    return codes


class ReportForm(NamedTuple):
    """What a report of importance holds: levels, and codes of the profile in `bits` each.

    4 bits hold a code as it is, 2 bits the nearest of a half, one, two and four times the mean of
    the tensor, and with 0 bits there are levels only. `bounded`: it is merged by the median and
    within bounds, not by the mean, as older versions did.
    """

    bits: int
    bounded: bool = True


FINE = ReportForm(4)


def report_size(shapes: Sequence[Shape], slot: int, slots: int, form: ReportForm = FINE) -> int:
    """Return the size in bytes of the report from `slot`."""
    return len(shapes) + (_num_reported(shapes, slot, slots) * form.bits + 7) // 8


def encode_report(own: Allocation, slot: int, slots: int, form: ReportForm = FINE) -> bytes:
    """Return all levels (1 byte each) and every `slots`-th code of the profile."""
    if not form.bits:
        return own.levels
    codes = np.frombuffer(own.profile, np.uint8)[slot % slots :: slots]
    if form.bits == _COARSE_BITS:
        codes = (np.clip(codes, _LEAST_CODE, _MOST_CODE) - _LEAST_CODE) // _COARSE_STEP
    return own.levels + pack(codes, symbols(form.bits))


@dataclass(frozen=True)
class Report:
    """The importance that the client in `slot` measured: all levels, and a part of the profile.

    `codes`: the codes number slot, slot + slots, ... of the profile, one byte each, or none.
    `bounded`: as in its form.
    """

    slot: int
    slots: int
    levels: bytes
    codes: bytes
    bounded: bool = True


def decode_report(
    data: bytes, shapes: Sequence[Shape], slot: int, slots: int, form: ReportForm = FINE
) -> Report:
    """Return the report in exactly `report_size` bytes; raise WireError if they hold none."""
    levels, packed = data[: len(shapes)], data[len(shapes) :]
    codes = np.zeros(0, np.uint8)
    unused_bits = False
    if form.bits:
        codes = unpack(packed, symbols(form.bits), _num_reported(shapes, slot, slots))
        unused_bits = pack(codes, symbols(form.bits)) != packed
    if unused_bits or max(levels, default=0) > _TOP_LEVEL:
        raise WireError("a report of importance is out of range")
    if form.bits == _COARSE_BITS:
        codes = codes * _COARSE_STEP + _LEAST_CODE
    return Report(slot, slots, bytes(levels), codes.tobytes(), form.bounded)


def merge_reports(
    before: Allocation | None, reports: Sequence[Report], shapes: Sequence[Shape]
) -> Allocation | None:
    """Return the reported levels merged into one, and the profile with all reported codes put in.

    Levels are merged by their median, and codes put in within bounds; without a bounded report
    levels by their mean, and codes as they are. Codes that nobody reported stay as they were
    `before`, or NEUTRAL. The order of reports does not matter unless two come from the same slot.
    """
    if not reports:
        return before
    bounded = any(report.bounded for report in reports)
    profile = np.frombuffer((before or equal_importance(shapes)).profile, np.uint8).copy()
    for report in reports:
        codes = np.frombuffer(report.codes, np.uint8)
        within = np.clip(codes, _LEAST_CODE, _MOST_CODE) if bounded else codes
        if len(codes):
            profile[report.slot % report.slots :: report.slots] = within
    levels = np.stack([np.frombuffer(r.levels, np.uint8).astype(np.int64) for r in reports])
    merged = _raise_least(_median(levels), shapes) if bounded else _mean(levels)
    return Allocation(merged.astype(np.uint8).tobytes(), profile.tobytes())


def _mean(levels: Integers) -> Integers:
    """Return the mean of each column, rounded half up."""
    mean: Integers = (levels.sum(axis=0) + len(levels) // 2) // len(levels)
    return mean


def _median(levels: Integers) -> Integers:
    """Return the median of each column; between two, their mean rounded half up."""
    ordered, last = np.sort(levels, axis=0), len(levels) - 1
    median: Integers = (ordered[last // 2] + ordered[(last + 1) // 2] + 1) // 2
    return median


def _raise_least(levels: Integers, shapes: Sequence[Shape]) -> Integers:
    """Return levels of which none weighs much less than the mean of all coordinates."""
    sizes = np.array([math.prod(shape) for shape in shapes], np.int64)
    mean = int((_LEVEL_WEIGHT[levels] * sizes).sum()) // max(1, int(sizes.sum()))
    least = int(np.searchsorted(_LEAST_SHARE * _LEVEL_WEIGHT, mean, side="right")) - 1
    return np.maximum(levels, max(0, least))


def _num_reported(shapes: Sequence[Shape], slot: int, slots: int) -> int:
    """Return how many profile codes the client in `slot` reports."""
    entries = sum(grid_of(shape).entries for shape in shapes)
    return len(range(slot % slots, entries, slots))


def restrict_to_masked(
    allocation: Allocation, whole: Sequence[Shape], kept: Sequence[Shape]
) -> Allocation:
    """Return an allocation for tensors of `whole` shapes as one for their `kept` values.

    A tensor of which a pruning mask leaves a vector has no profile.
    """
    profiles, at = [], 0
    for before, after in zip(whole, kept, strict=True):
        end = at + grid_of(before).entries
        if before == after:
            profiles.append(allocation.profile[at:end])
        at = end
    return Allocation(allocation.levels, b"".join(profiles))


def importance_weights(level: int, grid: Grid, codes: Codes) -> tuple[Integers, Integers | None]:
    """Return a tensor's weights by row and, if it has a profile, by column, as int64.

    A coordinate is sent with a probability proportional to the product of both.
    """
    if not grid.profiled:
        return _LEVEL_WEIGHT[level : level + 1] * 64 * 64, None
    factors = _CODE_WEIGHT[codes]
    return _LEVEL_WEIGHT[level] * factors[: grid.rows], factors[grid.rows :]
