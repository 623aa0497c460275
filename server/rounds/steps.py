"""How far the server goes along a round's mean update: its learning rate (Reddi et al. 2021).

Longer steps in the middle of a run make up for shorter ones at its end, which average the last
models (as in iterate averaging, Polyak and Juditsky 1992): what one round's clients or their
codec got wrong stays in the model by half. The figures come from a study of one model;
docs/results.md has what they give on others, with and without compression.
"""

from __future__ import annotations

from featherfed.compression.exchange.round import FULL_RATE

MIN_ROUNDS = 5
"""Shorter runs take whole steps."""
_MIDDLE = 333  # in units of 1 / FULL_RATE
_LAST = (128, 192)  # the last round's, the last but one's


def scheduled_rate(round_: int, rounds: int) -> int:
    """Return the server learning rate of a round, counted from 1, in units of 1 / FULL_RATE."""
    left = rounds - round_
    if rounds < MIN_ROUNDS or round_ == 1:
        return FULL_RATE
    return _LAST[left] if left < len(_LAST) else _MIDDLE
