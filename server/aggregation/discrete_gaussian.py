"""Exact samples of the discrete Gaussian distribution from the system's cryptographic source.

Noise in floating point tells by its last bits what it was added to (Mironov 2012, "On Significance
of the Least Significant Bits for Differential Privacy"). Integers with integer noise do not, and
cost the same privacy: Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential
Privacy", whose algorithms 1 to 3 these are. No step rounds: every probability is a fraction of
integers, or exp of one, decided by whole random words.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_BLOCK = 2**16
"""Values drawn together: few megabytes of memory, however many are asked for."""


class DiscreteGaussian:
    """Draws integers x with probability proportional to exp(-x**2 / (2 * deviation**2)).

    `deviation` is 2**bits, so that all exponents are multiples of 1 / 2**(2 * bits + 1).
    """

    def __init__(self, bits: int = 24, source: Callable[[int], bytes] = os.urandom) -> None:
        """`bits`: 0 to 24. `source`: returns as many random bytes as it is asked for."""
        self.deviation = 1 << bits
        self._bits = bits
        self._one = 1 << (2 * bits + 1)
        """An exponent of 1, in the units that exponents are counted in."""
        self._source = source

    def draw(self, count: int) -> Integers:
        """Return `count` independent values, int64 [count], which nobody has seen before."""
        blocks = [self._block(min(_BLOCK, count - at)) for at in range(0, count, _BLOCK)]
        return np.concatenate([*blocks, np.zeros(0, np.int64)])

    def _block(self, count: int) -> Integers:
        values = np.zeros(0, np.int64)
        while values.size < count:
            proposed = self._laplace(2 * (count - values.size))
            excess = np.abs(proposed) - self.deviation
            values = np.concatenate([values, proposed[self._exp_of_minus(excess * excess)]])
        chosen: Integers = values[:count]
        return chosen

    def _laplace(self, count: int) -> Integers:
        """Return discrete Laplace values of scale `deviation`, about half as many as `count`."""
        words = self._words(count)
        low = (words & np.uint64(self.deviation - 1)).astype(np.int64)
        negative = words >> np.uint64(63) == 1
        kept = self._exp_of_minus(low << (self._bits + 1))
        low, negative = low[kept], negative[kept]
        size = self.deviation * self._failures(low.size) + low
        kept = ~(negative & (size == 0))  # zero has one sign, or it would come twice as often
        values: Integers = np.where(negative, -size, size)[kept]
        return values

    def _failures(self, count: int) -> Integers:
        """Return how often an event of probability 1 / e happens before it first does not."""
        happened = np.zeros(count, np.int64)
        active = np.arange(count)
        while active.size:
            active = active[self._exp_of_minus_share(np.full(active.size, self._one))]
            happened[active] += 1
        return happened

    def _exp_of_minus(self, exponents: Integers) -> Flags:
        """Return for each exponent, not below 0, True with probability exp(-exponent)."""
        whole, share = exponents // self._one, exponents % self._one
        true = self._exp_of_minus_share(share)
        while (active := np.flatnonzero(true & (whole > 0))).size:
            true[active] = self._exp_of_minus_share(np.full(active.size, self._one))
            whole[active] -= 1
        return true

    def _exp_of_minus_share(self, exponents: Integers) -> Flags:
        """Return the same for exponents from 0 to 1: the series of exp, as von Neumann sums it."""
        true = np.zeros(exponents.size, np.bool_)
        active, k = np.arange(exponents.size), 1
        while active.size:
            goes_on = self._happens(exponents[active], k)
            true[active[~goes_on]] = k % 2 == 1
            active, k = active[goes_on], k + 1
        return true

    def _happens(self, exponents: Integers, k: int) -> Flags:
        """Return for each exponent from 0 to 1 True with probability exponent / k."""
        low_bits = np.uint64(2 * self._bits + 1)
        words = self._words(exponents.size)
        most = ((1 << (64 - int(low_bits))) // k) * k - 1  # above, the words are no multiple of k
        while (over := np.flatnonzero(words >> low_bits > most)).size:
            words[over] = self._words(over.size)
        low = (words & np.uint64(self._one - 1)).astype(np.int64)
        happens: Flags = ((words >> low_bits) % np.uint64(k) == 0) & (low < exponents)
        return happens

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        """Return `count` random words of 64 bits."""
        return np.frombuffer(self._source(8 * count), np.uint64).copy()
