"""How many rounds a run has, which may be raised while it lasts and after its end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TotalRounds:
    """The number of rounds that a run began with, and those that it was raised to since.

    `raised`: from a round on, the run has so many, in order. What depends on the number of rounds
    goes by the one that holds when a round opens, so rounds already made never change.
    """

    first: int
    raised: tuple[tuple[int, int], ...] = ()

    @property
    def now(self) -> int:
        """The number that holds for the rounds to come."""
        return self.raised[-1][1] if self.raised else self.first

    def at(self, round_: int) -> int:
        """Return the number that holds for a round, counted from 1."""
        found = self.first
        for begin, rounds in self.raised:
            if begin <= round_:
                found = rounds
        return found
