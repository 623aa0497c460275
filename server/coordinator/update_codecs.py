"""Which codec a client's updates take."""

from __future__ import annotations

from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import FULL_RATE
from featherfed.compression.registry import parse_codec
from featherfed.compression.sketch import Sketch
from featherfed.server.rounds.budget import SMALL_COHORT
from featherfed.server.rounds.promise import Promise
from featherfed.server.rounds.steps import scheduled_rate
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.uplink import Uplink
from featherfed.server.settings.settings import Settings

_AVERAGES = str(Sketch(1e-9, statistics="whole"))
"""Codec of a round that calibrates: what is trained stays as it is, which takes few bytes."""


class UpdateCodecs:
    """Chooses the run's codec of the round, or the fallback for clients that lack its stages."""

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        report: str,
        metric: str,
        rounds: TotalRounds | None = None,
    ) -> None:
        """`report`: how clients report importance where the codec is chosen by a budget.

        `metric`: the task's leading metric. `rounds`: how many the run has, those of `settings` by
        default.
        """
        self._settings = settings
        self._rounds = rounds or TotalRounds(settings.rounds)
        self._manifest = manifest
        self._report = report
        self._uplinks: dict[int, Uplink] = {}
        self._chosen: tuple[tuple[int, int], dict[frozenset[str], str]] = (0, 0), {}
        self.change_rounds(self._rounds)
        self._fallback = parse_codec(settings.compression.fallback)
        self.later_factor = 1.0
        """How many times a preset's usual bytes the round that is open sends, after the first."""
        preset = self._uplinks[self._rounds.first].preset
        self.promise = None if preset is None else Promise(preset, metric)
        """What is to be kept, if the uplink is a preset of which more may be sent."""

    def change_rounds(self, rounds: TotalRounds) -> None:
        """Go by another number of rounds in those that have not opened yet."""
        totals = {rounds.first, *(changed for _, changed in rounds.raised)}
        # Calls that do not block choose meanwhile: they find the old rounds' codecs in any case.
        text = self._settings.compression.uplink
        for number in totals - self._uplinks.keys():
            self._uplinks[number] = Uplink(text, self._manifest, number, self._report)
        self._rounds = rounds
        self._chosen = (0, 0), {}

    def required_stages(self, known: frozenset[str]) -> frozenset[str]:
        """Return the stages that a client must know: the fallback's, unless it knows the uplink's.

        The downlink needs none: broadcasts that a client cannot decode reach it as snapshots.
        """
        needed = frozenset().union(*(uplink.stages for uplink in self._uplinks.values()))
        return frozenset() if needed <= known else self._fallback.needs

    def choose(self, round_: int, slots: int, known: frozenset[str]) -> str:
        """Return the codec text for a client of a round of `slots` clients."""
        round_and_slots, chosen = self._chosen
        if round_and_slots != (round_, slots):
            chosen = {}
            self._chosen = (round_, slots), chosen
        if known not in chosen:
            text = self._codec(round_, slots)
            chosen[known] = text if parse_codec(text).needs <= known else str(self._fallback)
        return chosen[known]

    def _codec(self, round_: int, slots: int) -> str:
        if self._rounds.is_calibration(round_):
            return _AVERAGES
        sparsity = self._settings.sparsity.at(round_)
        trained = self._rounds.trained(round_)
        # A small cohort's codec is of another kind, whose noise is none of the promise's.
        factor = 1.0 if slots <= SMALL_COHORT else self.factor(round_)
        return self._uplink(round_).codec(slots, trained, sparsity, factor)

    def factor(self, round_: int) -> float:
        """Return how many times a preset's usual bytes the open round sends, or round 1."""
        if self.promise is not None and self._rounds.trained(round_) == 1:
            return self.promise.first_factor
        return self.later_factor

    def fallback(self) -> str:
        """Return the codec text that every client knows."""
        return str(self._fallback)

    def server_rate(self, round_: int, slots: int) -> int:
        """Return the server learning rate of a round in units of 1/256."""
        if (
            self._settings.aggregation.steps == "whole"
            or slots <= SMALL_COHORT
            or self._rounds.is_calibration(round_)
        ):
            return FULL_RATE
        return scheduled_rate(self._rounds.trained(round_), self._rounds.at(round_))

    def _uplink(self, round_: int) -> Uplink:
        return self._uplinks[self._rounds.at(round_)]
