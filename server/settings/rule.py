"""The aggregation rules by name, and how many updates each needs."""

from __future__ import annotations

from dataclasses import dataclass

_EXTRA_UPDATES = {"trimmed_mean": 1, "median": 1, "multi_krum": 3}
"""A robust rule needs `2 * byzantine` plus this many updates."""


@dataclass(frozen=True)
class Rule:
    """An aggregation rule by its name in the run file."""

    name: str
    byzantine: int
    """How many hostile clients a robust rule must withstand; the mean ignores it."""

    @property
    def min_updates(self) -> int:
        """How many updates a round needs: to withstand the hostile ones, or one for the mean."""
        return 2 * self.byzantine + _EXTRA_UPDATES[self.name] if self.is_robust else 1

    @property
    def is_robust(self) -> bool:
        """Whether the rule withstands hostile clients, unlike the mean."""
        return self.name in _EXTRA_UPDATES
