"""Weights of forwarded updates: rounded at random to 1, 1.5, 2, 3, 4, 6, ..., right in the mean.

Whoever gets a bundle sees what each update weighs, and a number of examples is as good as a name:
it stays the same from round to round. So a forwarded update weighs one of the two such numbers next
to its own, by a draw in every round (stochastic rounding, e.g. Gupta et al. 2015, "Deep Learning
with Limited Numerical Precision"). A client's draws of several rounds are a golden ratio apart
(an additive recurrence, Kronecker): any few of them cover 0 to 1 evenly, so that a model, which is
about the mean of the last rounds, has half of the rounding's noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from featherfed.compression.key import Key

_GOLDEN = 0x9E3779B97F4A7C15  # of 2^64


def coarse_weights(num_examples: Mapping[str, int], secret: Key, round_: int) -> dict[str, int]:
    """Return whole numbers in proportion to rounded numbers of examples, by client.

    What they are rounded to counts from the median number, so clients that all have as many weigh
    the same. `secret`: of the run; the same gives the same weights, also after a restart.
    """
    if not num_examples:
        return {}
    median = sorted(num_examples.values())[(len(num_examples) - 1) // 2]
    steps = {
        client: _random_step(count / median, _draw(secret.child(client), round_))
        for client, count in num_examples.items()
    }
    least = min(steps.values()) // 2
    weights = {client: (2 + step % 2) << (step // 2 - least) for client, step in steps.items()}
    shared = math.gcd(*weights.values())
    return {client: weight // shared for client, weight in weights.items()}


def _draw(client: Key, round_: int) -> float:
    """Return a client's draw of a round, from 0 to 1."""
    start = int.from_bytes(client.bits[:8], "little")
    return (start + round_ * _GOLDEN) % 2**64 / 2**64


def _random_step(ratio: float, draw: float) -> int:
    """Return k or k + 1, so that the steps' values 1, 1.5, 2, 3, ... are `ratio` in the mean.

    Step 2 k stands for 2^k, step 2 k + 1 for 1.5 * 2^k.
    """
    half, exponent = math.frexp(ratio)  # ratio = half * 2^exponent, half from 1/2 to 1
    part, whole = math.modf(4 * half - 2)  # how many halves of 2^(exponent - 1) it is beyond it
    return 2 * (exponent - 1) + int(whole) + (draw < part)
