"""How many rounds a run has, which may be raised while it lasts and after its end."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TotalRounds:
    """The number of training rounds that a run began with, and those that it was changed to since.

    `raised`: from a round on, the run has so many, in order; fewer where it was ended early. What
    depends on the number of rounds goes by the one that holds when a round opens, so rounds already
    made never change.

    `calibrates`: the rounds that train are followed by one that measures statistics alone. A run
    that is raised after it has another one at its new end.
    """

    first: int
    raised: tuple[tuple[int, int], ...] = ()
    calibrates: bool = False

    @property
    def now(self) -> int:
        """The number of training rounds that holds for the rounds to come."""
        return self.raised[-1][1] if self.raised else self.first

    @property
    def planned(self) -> int:
        """The most training rounds that the run ever had: one that was ended early has fewer."""
        return max(self.first, *(rounds for _, rounds in self.raised), 0)

    def changed(self, begin: int, rounds: int) -> TotalRounds:
        """Return the total of a run that has so many training rounds from round `begin` on."""
        kept = tuple(each for each in self.raised if each[0] < begin)
        return replace(self, raised=(*kept, (begin, rounds)))

    def ended(self, begin: int) -> TotalRounds:
        """Return the total of a run that trains no more from round `begin` on, 2 at the least.

        One that calibrates does so once more, unless the round before has done it.
        """
        kept = replace(self, raised=tuple(each for each in self.raised if each[0] < begin))
        if kept.last == begin - 1:
            return kept
        return kept.changed(begin, kept.trained(begin - 1))

    def at(self, round_: int) -> int:
        """Return the number of training rounds that holds for a round, counted from 1."""
        found = self.first
        for begin, rounds in self.raised:
            if begin <= round_:
                found = rounds
        return found

    @property
    def last(self) -> int:
        """The last round of all, with those that calibrate."""
        return self._end_and_held(None)[0]

    def is_calibration(self, round_: int) -> bool:
        """Whether a round measures statistics and does not train."""
        return self.calibrates and round_ == self._end_and_held(round_)[0]

    def trained(self, round_: int) -> int:
        """Return a round's number among those that train."""
        return round_ - self._end_and_held(round_)[1]

    def _end_and_held(self, round_: int | None) -> tuple[int, int]:
        """Return the last round as it holds for `round_`, and the calibrations held before it."""
        end, held = self.first + self.calibrates, 0
        for begin, rounds in self.raised:
            if round_ is not None and begin > round_:
                break
            held += self.calibrates and begin > end
            end = rounds + held + self.calibrates
        return end, held
