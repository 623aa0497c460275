"""The aggregation rules by name, and how many updates each needs."""

from __future__ import annotations

from dataclasses import dataclass

_MORE = {"trimmed_mean": 1, "median": 1, "multi_krum": 3}
"""How many updates more than twice the hostile ones each rule needs."""


@dataclass(frozen=True)
class Rule:
    """A rule by its name in the run file; `mean` withstands nobody and needs one update."""

    name: str
    byzantine: int

    @property
    def needs(self) -> int:
        """How many updates of a round it takes to withstand `byzantine` hostile ones."""
        return 2 * self.byzantine + _MORE[self.name] if self.is_robust else 1

    @property
    def is_robust(self) -> bool:
        """Whether it is more than the mean."""
        return self.name in _MORE
