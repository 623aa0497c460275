"""`sketch(density)`: a few random coordinates of an update, rotated, one bit each, unbiased.

FedAvg needs only the mean over the clients, not any one update: noise that is zero on the mean
averages out over clients and rounds, progress that a biased code cuts away does not come back. So
each client sends far less than one bit per parameter:

1. All coordinates lie on a line, each as long as it is important (allocation.py).
2. The line is cut into as many equal strata as values are sent. Each stratum has one random point,
   the same for all clients of a round, and client k looks k/K of a stratum further on: clients of
   one round send different coordinates. A coordinate is sent with a probability p in proportion to
   its length, and its value divided by p: unbiased (Horvitz and Thompson 1952).
3. The values, scaled to be about equally large, are rotated (hadamard.py) and quantized to one bit
   each, with the scale that makes the result unbiased (DRIVE, Vargaftik et al. 2021).

No error feedback: the noise is many times the signal, and feeding it back diverges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from featherfed.compression import importance
from featherfed.compression.arrays import Array
from featherfed.compression.buffer import Reader
from featherfed.compression.chain import MAX_MAGNITUDE
from featherfed.compression.context import PLAIN, Context
from featherfed.compression.errors import CodecError, NonFiniteError, WireError
from featherfed.compression.hadamard import LARGEST, SMALLEST, roots, rotate, rotate_back
from featherfed.compression.importance import Allocation
from featherfed.compression.key import Key
from featherfed.compression.stage import (
    Shape,
    pack,
    packed_size,
    stage_text,
    symbols,
    unpack,
)

Integers = npt.NDArray[np.int64]

_STEP = {1: 0.0, 2: 0.9957, 4: 0.3352}
"""Best uniform step for a standard normal (Max 1960), by bits; one bit needs none."""


@dataclass(frozen=True)
class Sketch:
    """`density` bits per parameter, `bits` of them for each value sent.

    With `profile`, the payload reports importance besides: a byte per tensor, and this client's
    share of the codes of rows and columns. State that is not trained is `sent` along as 8-bit
    floats, or `held` as it was.
    """

    density: float
    bits: int = 1
    side: str = "bare"
    statistics: str = "sent"

    name: ClassVar[str] = "sketch"
    lossless: ClassVar[bool] = False
    feedback: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    takes_all: ClassVar[bool] = True
    keyed: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"sketch"})

    def __post_init__(self) -> None:
        if not isinstance(self.density, int | float) or not 0 < self.density <= 1:
            raise CodecError(f"sketch needs a density above 0 and up to 1, got {self.density!r}")
        if self.bits not in _STEP:
            raise CodecError(f"sketch sends 1, 2 or 4 bits a value, not {self.bits!r}")
        if self.side not in ("bare", "profile"):
            raise CodecError(f"sketch sends bare bits or a profile too, not {self.side!r}")
        if self.statistics not in ("sent", "held"):
            raise CodecError(f"statistics are sent or held, not {self.statistics!r}")
        object.__setattr__(self, "density", float(self.density))

    def encode(self, tensors: Sequence[Array], context: Context = PLAIN) -> bytes:
        """Return the sketch of one client's update; raise CodecError for what is not finite."""
        shapes = [t.shape for t in tensors]
        for number, tensor in enumerate(tensors):
            if not (np.abs(tensor) <= MAX_MAGNITUDE).all():
                raise CodecError(
                    f"tensor {number} holds NaN, infinity or values beyond {MAX_MAGNITUDE:g}"
                )
        head, allocation = b"", context.allocation
        if self.side == "profile":
            own = importance.measure(tensors)
            head = importance.report(own, context.slot, context.slots)
            if allocation is None:
                allocation = Allocation(own.levels, importance.flat(shapes).profile)
        line = _Line(allocation or importance.flat(shapes), shapes)
        count = self._count(shapes)
        values = np.zeros(count, np.float32)
        for number, part, where, gain, _ in line.draw(count, context):
            values[part] = tensors[number].reshape(-1)[where] * gain
        rotated = rotate(values, context.own)
        levels = self._levels(rotated)
        codes = ((levels + np.float32(2**self.bits - 1)) / 2).astype(np.uint8)
        return head + _scales(rotated, levels).tobytes() + pack(codes, symbols(self.bits))

    def decode(self, data: bytes, shapes: Sequence[Shape], context: Context = PLAIN) -> list[Array]:
        """Return float32 tensors of `shapes`, zero where nothing was sent."""
        reader = Reader(data)
        allocation = self._read_head(reader, shapes, context)
        count = self._count(shapes)
        scales = np.frombuffer(reader.take(2 * _chunks(count)), "<u2").astype(np.uint32) << 16
        form = symbols(self.bits)
        raw = unpack(reader.take(packed_size(form, count)), form, count)
        reader.finish()
        out = [np.zeros(math.prod(shape), np.float32) for shape in shapes]
        levels = raw.astype(np.float32) * 2 - np.float32(2**self.bits - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = rotate_back(levels, context.own) * roots(count)
            values *= np.repeat(scales.view(np.float32), LARGEST)[:count]
            for tensor, part, where, _, root in _Line(allocation, shapes).draw(count, context):
                np.add.at(out[tensor], where, values[part] / root)
        if not np.isfinite(values).all():
            raise NonFiniteError("a sketch holds NaN or infinity")
        return [x.reshape(shape) for x, shape in zip(out, shapes, strict=True)]

    def read_report(
        self, data: bytes, shapes: Sequence[Shape], context: Context
    ) -> importance.Report | None:
        """Return what an encoded update reports of importance, None if it reports nothing."""
        if self.side != "profile":
            return None
        size = importance.report_size(shapes, context.slot, context.slots)
        head = Reader(data).take(size)
        return importance.read_report(head, shapes, context.slot, context.slots)

    def limit(self, shapes: Sequence[Shape]) -> int:
        """Return the most bytes that tensors of `shapes` take."""
        count = self._count(shapes)
        head = importance.report_size(shapes, 0, 1) if self.side == "profile" else 0
        return head + 2 * _chunks(count) + packed_size(symbols(self.bits), count)

    def _read_head(self, reader: Reader, shapes: Sequence[Shape], context: Context) -> Allocation:
        allocation = context.allocation or importance.flat(shapes)
        if self.side == "profile":
            size = importance.report_size(shapes, context.slot, context.slots)
            head = reader.take(size)
            found = importance.read_report(head, shapes, context.slot, context.slots)
            if context.allocation is None:
                return Allocation(found.levels, allocation.profile)
        return allocation

    def _count(self, shapes: Sequence[Shape]) -> int:
        """Return how many values are sent: whole blocks, at least one if there is anything."""
        total = sum(math.prod(shape) for shape in shapes)
        blocks = round(total * self.density / self.bits / SMALLEST)
        return SMALLEST * max(1, blocks) if total else 0

    def _levels(self, rotated: Array) -> Array:
        """Return odd whole numbers, float32, symmetric around zero."""
        if self.bits == 1:
            return np.where(rotated >= 0, np.float32(1), np.float32(-1))
        top = 2 ** (self.bits - 1)
        rms = np.sqrt(np.mean(np.square(rotated, dtype=np.float64))) or 1.0
        cells = np.floor(rotated / np.float32(_STEP[self.bits] * rms))
        levels: Array = np.clip(cells, -top, top - 1).astype(np.float32) * 2 + 1
        return levels

    def __str__(self) -> str:
        return stage_text(self)


def _chunks(count: int) -> int:
    return -(-count // LARGEST)


def _scales(rotated: Array, levels: Array) -> npt.NDArray[np.uint16]:
    """Return one unbiased scale for every LARGEST values, as the upper half of a float32."""
    scales = []
    for at in range(0, len(rotated), LARGEST):
        z = rotated[at : at + LARGEST].astype(np.float64)
        overlap = float(np.vdot(z, levels[at : at + LARGEST]))
        scales.append(float(np.vdot(z, z)) / overlap if overlap > 0 else 0.0)
    exact = np.array(scales, "<f4").view("<u4").astype(np.uint32)
    return ((exact + 0x8000) >> 16).astype("<u2")


class _Line:
    """All coordinates in a row, each `weight` long."""

    def __init__(self, allocation: Allocation, shapes: Sequence[Shape]) -> None:
        self._rows: list[Integers] = []
        self._columns: list[Integers | None] = []
        self._sizes = [math.prod(shape) for shape in shapes]
        profile = np.frombuffer(allocation.profile, np.uint8)
        at = total = 0
        ends = []
        for shape, level in zip(shapes, allocation.levels, strict=True):
            grid = importance.grid_of(shape)
            codes = profile[at : at + grid.entries]
            at += grid.entries
            rows, columns = importance.weights(level, grid, codes)
            length = grid.columns if columns is None else int(columns.sum())
            total += int(rows.sum()) * length
            if total >= 2**62:
                raise WireError("the model is too large for this allocation of importance")
            self._rows.append(rows)
            self._columns.append(columns)
            ends.append(rows * length)
        self._total = total
        self._ends = np.cumsum(np.concatenate([*ends, np.zeros(0, np.int64)]))

    def draw(
        self, count: int, context: Context
    ) -> Iterator[tuple[int, slice, Integers, Array, Array]]:
        """Yield, by tensor, which of the `count` values lie in it and where (flat index).

        With them go float32 gain (what a value is multiplied with before it is sent) and root (what
        it is divided by on arrival); gain / root is one over the chance of being sent.
        """
        if not count:
            return
        points, widths = self._points(count, context.key.child("points"), context)
        row = np.searchsorted(self._ends, points, side="right")
        begins = np.concatenate([np.zeros(1, np.int64), self._ends])
        within = points - begins[row]
        first = 0
        for tensor, (rows, columns) in enumerate(zip(self._rows, self._columns, strict=True)):
            part = slice(*np.searchsorted(row, [first, first + len(rows)]))
            own_row = row[part] - first
            first += len(rows)
            if part.start == part.stop:
                continue
            weight = rows[own_row]
            column = within[part] // weight
            width = self._sizes[tensor] // len(rows)
            if columns is not None:
                column = np.searchsorted(np.cumsum(columns), column, side="right")
                weight = weight * columns[column]
            root = np.sqrt(weight.astype(np.float64)).astype(np.float32)
            gain = (widths[part] / root).astype(np.float32)
            yield tensor, part, own_row * width + column, gain, root

    def _points(self, count: int, key: Key, context: Context) -> tuple[Integers, Integers]:
        """Return one point in each of `count` strata, rising, and the strata's widths."""
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
