"""`sketch(density)`: a few random coordinates of an update, rotated, one bit each, unbiased.

FedAvg needs only the mean over the clients, not any one update: noise that is zero on the mean
averages out over clients and rounds, progress that a biased code cuts away does not come back. So
each client sends far less than one bit per parameter:

1. All coordinates lie on a line, each as long as its importance weight (importance.py).
2. The line is cut into as many equal strata as values are sent. Each stratum has one random point,
   the same for all clients of a round, and client k of K takes the one k/K of a stratum further
   on: clients of one round send different coordinates (sampler.py). A coordinate is sent with a
   probability p proportional to its length, and its value divided by p: unbiased (Horvitz and
   Thompson 1952).
3. The values, scaled to be about equally large, are rotated (hadamard.py) and quantized to one bit
   each, or to the peak of every 32 (quantizers.py), with the scale that makes the result unbiased
   (DRIVE, Vargaftik et al. 2021).

No error feedback: the noise is many times the signal, and feeding it back diverges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.buffer import Reader
from featherfed.compression.codec import Decoded, check_magnitudes
from featherfed.compression.context import NO_CONTEXT, Context
from featherfed.compression.errors import CodecError, NonFiniteError
from featherfed.compression.hadamard import MAX_BLOCK, MIN_BLOCK, block_scales, rotate, rotate_back
from featherfed.compression.importance import (
    Allocation,
    Integers,
    Report,
    ReportForm,
    decode_report,
    encode_report,
    equal_importance,
    measure_importance,
    report_size,
)
from featherfed.compression.quantizers import QUANTIZERS, Quantizer
from featherfed.compression.sampler import Sample, Sampler, sampler_of
from featherfed.compression.sparse import SparseTensor, dense, energy, sparse_sum
from featherfed.compression.stage import Shape, stage_text
from featherfed.compression.traits import Traits

BOUNDED = "bounded"
"""A report of importance whose influence is bounded; peers must know how it is merged."""
PROFILE = "profile"
"""The report of older versions, of which one lie could decide what all clients send."""
COARSE = "coarse"
"""A bounded report whose codes take half the bits."""
LEVELS = "levels"
"""A bounded report of tensors' importance, without rows and columns."""
_REPORTS = {
    PROFILE: ReportForm(4, bounded=False),
    BOUNDED: ReportForm(4),
    COARSE: ReportForm(2),
    LEVELS: ReportForm(0),
}
_ABILITIES = {BOUNDED: {BOUNDED}, COARSE: {COARSE}, LEVELS: {COARSE}}
"""What a peer must say that it can do, by the side."""
_BLOCKS_A_SCALE = 4  # of peaks: they take fewer bits than signs

_NOWHERE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Sketch:
    """A codec that sends `density` bits per parameter: some coordinates, in `bits` bits each.

    `bits`: 1, 2 or 4, or 0.1875: the peak of every 32 values, 6 bits.
    `side`: "bare", or how the payload also reports importance: "bounded" (a byte per tensor, and
    this client's part of the codes of rows and columns), "coarse" (codes of half the bits),
    "levels" (no codes), or "profile", the report of older versions. `statistics`: tensors that are
    not trained are "sent" as 8-bit floats, by each client a part if all of them would cost much,
    "whole" by every client as 16-bit floats, or "held" at their old values.
    Raises CodecError for arguments out of range.
    """

    density: float
    bits: float = 1
    side: str = "bare"
    statistics: str = "sent"

    name: ClassVar[str] = "sketch"

    def __post_init__(self) -> None:
        if not isinstance(self.density, int | float) or not 0 < self.density <= 1:
            raise CodecError(f"sketch needs a density above 0 and up to 1, got {self.density!r}")
        if self.bits not in QUANTIZERS:
            known = ", ".join(f"{bits:g}" for bits in QUANTIZERS)
            raise CodecError(f"sketch sends {known} bits a value, not {self.bits!r}")
        if self.side not in ("bare", *_REPORTS):
            raise CodecError(
                f"sketch sends bare bits, or one of {', '.join(_REPORTS)} too, not {self.side!r}"
            )
        if self.statistics not in ("sent", "whole", "held"):
            raise CodecError(f"statistics are sent, whole or held, not {self.statistics!r}")
        object.__setattr__(self, "density", float(self.density))

    @property
    def needs(self) -> frozenset[str]:
        """Its name, and that of its report, which both sides must merge alike."""
        return frozenset({self.name} | _ABILITIES.get(self.side, set()))

    @cached_property
    def traits(self) -> Traits:
        """Keyed and sampled; statistics travel as values or not at all."""
        return Traits(
            keyed=True,
            takes_small_tensors=True,
            statistics_as_values=True,
            sends_statistics=self.statistics != "held",
            shares_statistics=self.statistics == "sent",
            sampling_rate=min(1.0, self.density / max(1, self.bits)),
        )

    def encode(self, tensors: Sequence[Array], context: Context = NO_CONTEXT) -> bytes:
        """Return the sketch of an update; raise CodecError for NaN or beyond MAX_MAGNITUDE."""
        shapes = [t.shape for t in tensors]
        check_magnitudes(tensors)
        report, allocation = b"", context.allocation
        if self._reports:
            own = measure_importance(tensors)
            report = encode_report(own, context.slot, context.slots, _REPORTS[self.side])
            if allocation is None:
                allocation = Allocation(own.levels, equal_importance(shapes).profile)
        sampler = sampler_of(allocation or equal_importance(shapes), tuple(shapes))
        count = self._count(shapes)
        values = np.zeros(count, np.float32)
        for sample in sampler.draw(count, context):
            gain = (sampler.widths(sample.values, count) / sample.root).astype(np.float32)
            tensor = tensors[sample.tensor].reshape(-1)
            np.multiply(tensor[sample.positions], gain, out=values[sample.values])
        spread = self._spread(count)
        rotated = rotate(values if spread is None else values[spread], context.update_key)
        levels = self._quantizer.levels(rotated)
        scales = _scales(rotated, levels, self._span)
        return report + scales.tobytes() + self._quantizer.pack(levels)

    def decode(
        self, data: bytes, shapes: Sequence[Shape], context: Context = NO_CONTEXT
    ) -> list[Array]:
        """Return float32 tensors of `shapes`, zero where nothing was sent."""
        return [dense(tensor) for tensor in self.decode_sparse(data, shapes, context).tensors]

    def decode_sparse(
        self, data: bytes, shapes: Sequence[Shape], context: Context = NO_CONTEXT
    ) -> Decoded:
        """Return the values that were sent of tensors of `shapes`, and the noise in them."""
        reader = Reader(data)
        allocation = self._read_allocation(reader, shapes, context)
        count = self._count(shapes)
        num_scales = -(-count // self._span)
        words = np.frombuffer(reader.take(2 * num_scales), "<u2").astype(np.uint32) << 16
        scales = words.view(np.float32)
        levels = self._quantizer.unpack(reader.take(self._quantizer.size(count)), count)
        reader.finish()
        sampler = sampler_of(allocation, tuple(shapes))
        with np.errstate(over="ignore", invalid="ignore"):
            values = rotate_back(levels, context.update_key)
            values *= block_scales(count)
            values *= np.repeat(scales, self._span)[:count]
            spread = self._spread(count)
            if spread is not None:
                values[spread] = values.copy()
            if not np.isfinite(values).all():
                raise NonFiniteError("a sketch holds NaN or infinity")
            tensors = _placed(values, sampler.draw(count, context), shapes)
        before = self._energy_before(levels, scales, sampler)
        return Decoded(tensors, sum(map(energy, tensors)) - before)

    def read_report(self, data: bytes, shapes: Sequence[Shape], context: Context) -> Report | None:
        """Return the report of importance in encoded `data`, None if it holds none."""
        if not self._reports:
            return None
        return _take_report(Reader(data), shapes, context, self.side)

    def limit(self, shapes: Sequence[Shape]) -> int:
        """Return the most bytes that tensors of `shapes` take."""
        count = self._count(shapes)
        report = report_size(shapes, 0, 1, _REPORTS[self.side]) if self._reports else 0
        return report + 2 * -(-count // self._span) + self._quantizer.size(count)

    def _energy_before(self, levels: Array, scales: Array, sampler: Sampler) -> float:
        """Return about the energy (sum of squares) of the tensors that were encoded.

        A value that is sent is value * width / root, and one in width / root**2 is: their energy
        is in the mean the tensors' times the width. Rotation keeps it, quantizing expands it.
        """
        if not levels.size:
            return 0.0
        begins = np.arange(0, levels.size, self._span)
        squares = np.add.reduceat(np.square(levels), begins, dtype=np.float64)
        received = float(np.vdot(np.square(scales, dtype=np.float64), squares))
        return received / self._quantizer.expansion / sampler.mean_width(levels.size)

    @property
    def _reports(self) -> bool:
        """Whether payloads begin with a report of importance."""
        return self.side != "bare"

    def _read_allocation(
        self, reader: Reader, shapes: Sequence[Shape], context: Context
    ) -> Allocation:
        """Return the allocation that the sender used, after reading its report if there is one."""
        allocation = context.allocation or equal_importance(shapes)
        if self._reports:
            report = _take_report(reader, shapes, context, self.side)
            if context.allocation is None:
                return Allocation(report.levels, allocation.profile)
        return allocation

    def _count(self, shapes: Sequence[Shape]) -> int:
        """Return how many values are sent: whole blocks, at least one if there is anything."""
        total = sum(math.prod(shape) for shape in shapes)
        blocks = round(total * self.density / self.bits / MIN_BLOCK)
        return MIN_BLOCK * max(1, blocks) if total else 0

    @property
    def _span(self) -> int:
        """How many values have a scale in common."""
        return MAX_BLOCK if self.bits >= 1 else MAX_BLOCK * _BLOCKS_A_SCALE

    def _spread(self, count: int) -> Integers | None:
        """Return the order in which values are rotated, int64 [count]; None: as they are.

        Blocks with a scale in common must be of about one norm, or it is wrong for each of them.
        """
        return None if self.bits >= 1 else _evenly_mixed(count)

    @property
    def _quantizer(self) -> Quantizer:
        return QUANTIZERS[self.bits]

    @cached_property
    def _text(self) -> str:
        return stage_text(self)

    def __str__(self) -> str:
        return self._text


def _placed(
    values: Array, samples: Iterable[Sample], shapes: Sequence[Shape]
) -> list[SparseTensor]:
    """Return tensors of `shapes` with the received `values` of `samples`; overwrites `values`."""
    positions: list[list[Integers]] = [[] for _ in shapes]
    for sample in samples:
        values[sample.values] /= sample.root
        positions[sample.tensor].append(sample.positions)
    tensors, begin = [], 0
    for shape, parts in zip(shapes, positions, strict=True):
        own = np.concatenate([*parts, _NOWHERE])
        end = begin + len(own)
        tensors.append(sparse_sum(shape, own, values[begin:end]))
        begin = end
    return tensors


def _take_report(reader: Reader, shapes: Sequence[Shape], context: Context, side: str) -> Report:
    form = _REPORTS[side]
    data = reader.take(report_size(shapes, context.slot, context.slots, form))
    return decode_report(data, shapes, context.slot, context.slots, form)


@lru_cache(2)
def _evenly_mixed(count: int) -> Integers:
    """Return the numbers below `count` in an order of which any run is spread over all of them.

    Steps of about the golden ratio, int64 [count].
    """
    step = max(1, count * 618_034 // 1_000_000)
    while math.gcd(step, count) > 1:
        step += 1
    return np.arange(count, dtype=np.int64) * step % max(1, count)


def _scales(rotated: Array, levels: Array, span: int) -> npt.NDArray[np.uint16]:
    """Return one unbiased scale for every `span` values, as the upper half of a float32."""
    scales = []
    for at in range(0, len(rotated), span):
        z = rotated[at : at + span].astype(np.float64)
        # Not np.vdot, whose threads would spin at these lengths.
        overlap = float((z * levels[at : at + span]).sum())
        scales.append(float(np.square(z).sum()) / overlap if overlap > 0 else 0.0)
    exact = np.array(scales, "<f4").view("<u4").astype(np.uint32)
    return ((exact + 0x8000) >> 16).astype("<u2")
