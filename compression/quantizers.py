"""How a sketch's rotated values become bits: a few bits each, or only the peak of every group.

Rotated values are roughly normally distributed. At one bit each the error is pi / 2 times the
energy of what is sent; the position and sign of the largest of 32 values, 6 bits, cost an error of
about 5.7 times the energy at 3/16 of the bits, so two thirds of the noise for the same bytes
(measured on Gaussian noise: tests/test_quantizers.py). `expansion` has these factors. Of 128 values
it is a little less noise, and three times the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.stage import pack, packed_size, symbols, unpack

GROUP = 32
"""Values of which `Peaks` sends one."""
_SYMBOL = symbols(6)  # a place below GROUP, and 32 more if the peak is negative
PEAK_BITS = _SYMBOL.bits / GROUP
"""Bits that `Peaks` spends on a value."""
_STEP_SIZE = {1: 0.0, 2: 0.9957, 4: 0.3352}
"""Best uniform step for a standard normal (Max 1960), by bits; one bit needs none."""


class Quantizer(Protocol):
    """Turns float32 [n], n a multiple of 64, into whole numbers, and those into bytes and back.

    The caller scales what comes back, so that it is right in the mean.
    """

    @property
    def expansion(self) -> float:
        """How many times larger than theirs the energy of normal values comes back, at least 1.

        Energy is the sum of squares. With the scale ||z||^2 / <z, q(z)>, which makes what comes
        back right in the mean, it is E[q(g)^2] / E[g q(g)]^2 for a standard normal g.
        """

    def levels(self, values: Array) -> Array:
        """Return the quantized values, whole numbers, float32 [n]."""

    def pack(self, levels: Array) -> bytes:
        """Return levels as bytes; may overwrite them."""

    def unpack(self, data: bytes | memoryview, count: int) -> Array:
        """Return the `count` levels in exactly `size(count)` bytes."""

    def size(self, count: int) -> int:
        """Return the bytes that `count` levels take."""


@dataclass(frozen=True)
class Uniform:
    """Quantizes each value to one of 2**bits odd whole numbers, symmetric around zero."""

    bits: int

    @cached_property
    def expansion(self) -> float:
        """Pi / 2 of one bit; of others by the normal distribution at the edges between levels."""
        edges = [_STEP_SIZE[self.bits] * k for k in range(1, 2 ** (self.bits - 1))]
        # Levels differ by 2, and by parts E[g; g > t] is the density at t.
        overlap = 2 * _density(0) + sum(4 * _density(edge) for edge in edges)
        # (2k + 1)^2 - (2k - 1)^2 = 8k, beyond the edge number k on either side.
        energy = 1 + sum(
            8 * k * math.erfc(edge / math.sqrt(2)) for k, edge in enumerate(edges, start=1)
        )
        return energy / overlap**2

    def levels(self, values: Array) -> Array:
        """Return odd whole numbers; of one bit, the signs."""
        if self.bits == 1:
            signs = (values >= 0).astype(np.float32)
            signs *= 2
            signs -= 1
            return signs
        top = 2 ** (self.bits - 1)
        rms = np.sqrt(np.mean(np.square(values, dtype=np.float64))) or 1.0
        cells = np.floor(values / np.float32(_STEP_SIZE[self.bits] * rms))
        levels: Array = np.clip(cells, -top, top - 1).astype(np.float32) * 2 + 1
        return levels

    def pack(self, levels: Array) -> bytes:
        """Return `bits` bits for each level; overwrites them."""
        levels += np.float32(2**self.bits - 1)
        levels /= 2
        return pack(levels.astype(np.uint8), symbols(self.bits))

    def unpack(self, data: bytes | memoryview, count: int) -> Array:
        """Return the levels in `data`."""
        levels = unpack(data, symbols(self.bits), count).astype(np.float32)
        levels *= 2
        levels -= np.float32(2**self.bits - 1)
        return levels

    def size(self, count: int) -> int:
        """Return the bytes of `count` levels."""
        return packed_size(symbols(self.bits), count)


@dataclass(frozen=True)
class Peaks:
    """Keeps the sign of the largest of every GROUP values, and where it is; the others become 0."""

    @cached_property
    def expansion(self) -> float:
        """GROUP divided by the square of the mean peak of GROUP normal values, about 5.7.

        The mean of the largest magnitude is the integral of its chance to be above x.
        """
        step = 1 / 64  # the midpoint rule is exact to 1e-12 here: all is flat at both ends
        places = (step * (k + 0.5) for k in range(round(12 / step)))
        peak = step * sum(1 - math.erf(x / math.sqrt(2)) ** GROUP for x in places)
        return GROUP / peak**2

    def levels(self, values: Array) -> Array:
        """Return +1 or -1 for each group's largest magnitude, 0 elsewhere."""
        groups = values.reshape(-1, GROUP)
        rows = np.arange(len(groups))
        peaks = np.abs(groups).argmax(axis=1)
        levels = np.zeros_like(groups)
        levels[rows, peaks] = np.where(groups[rows, peaks] < 0, -1, 1)
        return levels.reshape(-1)

    def pack(self, levels: Array) -> bytes:
        """Return 6 bits for each group: the peak's place, and 32 more if it is negative."""
        groups = levels.reshape(-1, GROUP)
        peaks = groups.argmin(axis=1)
        negative = groups[np.arange(len(groups)), peaks] < 0
        codes = np.where(negative, peaks + GROUP, groups.argmax(axis=1)).astype(np.uint8)
        return pack(codes, _SYMBOL)

    def unpack(self, data: bytes | memoryview, count: int) -> Array:
        """Return the levels in `data`."""
        codes = unpack(data, _SYMBOL, count // GROUP)
        levels = np.zeros((count // GROUP, GROUP), np.float32)
        levels[np.arange(len(codes)), codes % GROUP] = np.where(codes < GROUP, 1, -1)
        return levels.reshape(-1)

    def size(self, count: int) -> int:
        """Return the bytes of `count` levels."""
        return packed_size(_SYMBOL, count // GROUP)


def _density(x: float) -> float:
    """Return the density of the standard normal distribution."""
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


QUANTIZERS: dict[float, Quantizer] = {
    PEAK_BITS: Peaks(),
    1: Uniform(1),
    2: Uniform(2),
    4: Uniform(4),
}
"""By the bits that they spend on a value."""
