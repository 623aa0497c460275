"""How a preset keeps its promise of loss: its bytes rise where noise is large beside the weights.

Relative errors of weights move what a network computes by about their sum over its tensors,
whatever the network is (as in the theory of quantized weights). So a round's noise, relative to the
weights that it comes to, says before any evaluation whether a preset's usual bytes are enough.

A share, such as accuracy, changes only where an answer passes a border; an error, such as MSE,
changes with every weight. So there are two sets of limits. Those of shares are where five models on
parts of Fashion-MNIST (an MLP, a CNN, a GRU, a transformer and a residual network) lost about what
the preset promises. Those of other metrics are a tenth, and the first round, whose noise nobody
knows before, sends more: an autoencoder and a CNN that predicts grey values, both on parts of
Fashion-MNIST, and a forecast of power demand (a GRU) were looked at. docs/results.md has other
models and data.
"""

from __future__ import annotations

from dataclasses import dataclass

from featherfed.tasks.metrics import is_share

LIMITS = {"transparent": 0.018, "balanced": 0.055, "extreme": 0.1}
"""Preset -> most noise, relative to the weights, that keeps its promise from round 3 on."""
_EARLY = {1: 6.0, 2: 2.0}
"""How many times more the first rounds may have: weights are small yet, and what is lost is learned
again."""
_OF_OTHER_METRICS = 0.1
"""The part of the limits that other metrics than shares may have."""
MAX_FACTOR = 16.0
"""A preset never sends more times its usual bytes."""


@dataclass(frozen=True)
class Promise:
    """What a preset promises of a run's leading `metric`, and the bytes that it takes to keep it.

    Rounds are counted from 1.
    """

    preset: str
    metric: str

    @property
    def first_factor(self) -> float:
        """How many times its usual bytes the preset sends in round 1."""
        return 1.0 if is_share(self.metric) else MAX_FACTOR

    def limit(self, round_: int) -> float:
        """Return the most noise relative to the weights in a round."""
        part = 1.0 if is_share(self.metric) else _OF_OTHER_METRICS
        return part * LIMITS[self.preset] * _EARLY.get(round_, 1.0)

    def next_factor(self, factor: float, weight_noise: float, round_: int) -> float:
        """Return how many times its usual bytes the preset sends after `round_`, at least 1.

        `factor`: of that round, whose noise relative to the weights was `weight_noise`. Noise falls
        in proportion to bytes.
        """
        needed = factor * weight_noise / self.limit(round_)
        return max(1.0, min(MAX_FACTOR, round(needed, 2)))
