"""How a preset keeps its promise of loss: its bytes rise where noise is large beside the weights.

Relative errors of weights move what a network computes by about their sum over its tensors,
whatever the network is (as in the theory of quantized weights). So a round's noise, relative to the
weights that it comes to, says before any evaluation whether a preset's usual bytes are enough. The
limits are where five models on parts of Fashion-MNIST (an MLP, a CNN, a GRU, a transformer and a
residual network) lost about what the preset promises; docs/results.md has other models and data.
"""

from __future__ import annotations

LIMITS = {"transparent": 0.018, "balanced": 0.055, "extreme": 0.1}
"""Preset -> most noise, relative to the weights, that keeps its promise from round 3 on."""
_EARLY = {1: 6.0, 2: 2.0}
"""How many times more the first rounds may have: weights are small yet, and what is lost is learned
again."""
MAX_FACTOR = 16.0
"""A preset never sends more times its usual bytes."""


def limit(preset: str, round_: int) -> float:
    """Return the most noise relative to the weights in a round, counted from 1."""
    return LIMITS[preset] * _EARLY.get(round_, 1.0)


def next_factor(preset: str, factor: float, weight_noise: float, round_: int) -> float:
    """Return how many times a preset's usual bytes the round after `round_` sends, at least 1.

    `factor`: of that round, whose noise relative to the weights was `weight_noise`. Noise falls in
    proportion to bytes.
    """
    needed = factor * weight_noise / limit(preset, round_)
    return max(1.0, min(MAX_FACTOR, round(needed, 2)))
