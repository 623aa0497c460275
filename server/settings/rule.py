"""The aggregation rules by name, and how many updates each needs."""

from __future__ import annotations

from dataclasses import dataclass

_EXTRA_UPDATES = {"trimmed_mean": 1, "median": 1, "multi_krum": 3}
"""A robust rule needs `2 * byzantine` plus this many updates."""


@dataclass(frozen=True)
class Rule:
    """An aggregation rule by its name in the run file; `mean`, not robust, needs one update."""

    name: str
    byzantine: int

    @property
    def needs(self) -> int:
        """How many updates of a round it takes to withstand `byzantine` hostile ones."""
        return 2 * self.byzantine + _EXTRA_UPDATES[self.name] if self.is_robust else 1

    @property
    def is_robust(self) -> bool:
        """Whether it withstands hostile clients, unlike the mean."""
        return self.name in _EXTRA_UPDATES
