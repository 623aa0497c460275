"""Weights of forwarded updates: rounded at random to powers of two, right in the mean.

Whoever gets a bundle sees what each update weighs, and a number of examples is as good as a name:
it stays the same from round to round. So a forwarded update weighs a power of two, one of the two
next to its number of examples, by a draw of its own in every round (stochastic rounding, e.g. Gupta
et al. 2015, "Deep Learning with Limited Numerical Precision").
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from featherfed.compression.key import Key


def coarse_weights(num_examples: Mapping[str, int], key: Key) -> dict[str, int]:
    """Return whole numbers in proportion to rounded numbers of examples, by client; the least is 1.

    Powers of two count from the median number, so clients that all have as many weigh the same.
    `key`: secret and of one round; the same key gives the same weights, also after a restart.
    """
    if not num_examples:
        return {}
    median = sorted(num_examples.values())[(len(num_examples) - 1) // 2]
    exponents = {
        client: _random_exponent(count / median, key.child(client))
        for client, count in num_examples.items()
    }
    least = min(exponents.values())
    return {client: 1 << (exponent - least) for client, exponent in exponents.items()}


def _random_exponent(ratio: float, key: Key) -> int:
    """Return k or k + 1 with 2^k <= ratio < 2^(k + 1), so that 2 to it is `ratio` in the mean."""
    half, exponent = math.frexp(ratio)  # ratio = half * 2^exponent, half from 1/2 to 1
    draw = int.from_bytes(key.bits[:8], "little") / 2**64
    return exponent - 1 + (draw < 2 * half - 1)
