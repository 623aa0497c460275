"""Sparsity over the rounds: the cubic schedule of Zhu and Gupta (2017)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SparsitySchedule:
    """No pruning before round `begin`, and from round `end` on, a share `final` of the weights."""

    final: float
    begin: int
    end: int

    def at(self, round_: int) -> float:
        """Return the target sparsity in [0, 1) of a round, counted from 1."""
        if round_ < self.begin:
            return 0.0
        if round_ >= self.end:
            return self.final
        progress = (round_ - self.begin + 1) / (self.end - self.begin + 1)
        return self.final * (1 - (1 - progress) ** 3)


DENSE = SparsitySchedule(0.0, 1, 1)
"""No pruning in any round."""
