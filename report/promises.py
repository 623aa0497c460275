"""What presets promise to lose at most against the baseline, and whether a sweep's runs kept it."""

from __future__ import annotations

import enum
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featherfed.report.metric import loss_scale, lost_unit
from featherfed.report.scenario import CodecRuns, Scenario
from featherfed.report.summary import NONE, count_text

_ROUNDING = 1e-9
"""Losses are differences of floats: by so much, of the promise, they may be over it."""


class Verdict(enum.StrEnum):
    """Whether a promise was kept."""

    KEPT = "kept"
    NOISE = "within noise"
    BROKEN = "broken"


def judge(losses: Sequence[float], promise: float, unscored: int = 0) -> Verdict | None:
    """Return whether losses, one a seed, keep to `promise`; None of fewer than two seeds.

    Kept: their mean is not over it. Within noise: it is over by no more than its standard error.
    `unscored`: seeds that have no loss, since the model is no longer finite; one breaks it.
    """
    if len(losses) + unscored < 2:
        return None
    if unscored:
        return Verdict.BROKEN
    over = statistics.mean(losses) - promise
    if over <= _ROUNDING * promise:
        return Verdict.KEPT
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    return Verdict.NOISE if over <= error + _ROUNDING * promise else Verdict.BROKEN


@dataclass(frozen=True)
class Checked:
    """A preset in a scenario: what it lost, and what it promises to lose at most."""

    codec: str
    where: str
    unit: str
    """Of losses and promise: "points", or "%" of the baseline's value."""
    losses: tuple[float, ...]
    """One for each seed on which both the codec and the baseline have a score."""
    unscored: int
    """Seeds on which the baseline alone has a score."""
    promise: float
    up: float
    """Payload bytes, mean per client and round; `down` likewise."""
    down: float

    @property
    def verdict(self) -> Verdict | None:
        """Whether the promise was kept; None if that cannot be said."""
        return judge(self.losses, self.promise, self.unscored)

    @property
    def share(self) -> float:
        """How much of its promise the preset has lost in the mean; 1 is all of it."""
        return math.inf if self.unscored else statistics.mean(self.losses) / self.promise

    @property
    def lost_text(self) -> str:
        """Mean and standard deviation of the losses."""
        if not self.losses:
            return "no score" if self.unscored else NONE
        text = f"{round(statistics.mean(self.losses), 2) + 0:+.2f}"  # no -0.00
        if len(self.losses) > 1:
            text += f" ± {statistics.stdev(self.losses):.2f}"
        return f"{text}, {self.unscored} without a score" if self.unscored else text

    @property
    def promise_text(self) -> str:
        """The promise with its unit."""
        return f"{self.promise:g} {self.unit}"


@dataclass(frozen=True)
class PromiseTable:
    """The finished texts of a sweep's promises: a row per preset and scenario, and a line."""

    rows: list[dict[str, str]]
    summary: str


def check(
    scenarios: Sequence[Scenario], baseline: str, promises: Mapping[str, float]
) -> list[Checked]:
    """Return every preset that promises something, in every scenario that has the baseline."""
    found = []
    for scenario in scenarios:
        reference = next((c for c in scenario.codecs if c.name == baseline), None)
        if reference is None:
            continue
        for codec in scenario.codecs:
            promise = promises.get(codec.runs[0]["uplink"])
            if promise is not None and codec is not reference:
                found.append(_checked(scenario, codec, reference, promise))
    return found


def _checked(scenario: Scenario, codec: CodecRuns, reference: CodecRuns, promise: float) -> Checked:
    scores, base = codec.scores, reference.scores
    seeds = [seed for seed in scores if seed in base]
    larger = scenario.is_better(1, 0)
    scale = loss_scale(scenario.metric, larger, [base[seed] for seed in seeds])
    unscored = sum(run["score"] is None and run["seed"] in base for run in codec.runs)
    return Checked(
        codec.name,
        scenario.title,
        lost_unit(scenario.metric),
        () if scale is None else tuple(scale * (base[seed] - scores[seed]) for seed in seeds),
        unscored,
        promise,
        codec.mean("up_payload_bytes"),
        codec.mean("down_payload_bytes"),
    )


def promise_table(checked: Sequence[Checked]) -> PromiseTable:
    """Return the table of a sweep's promises; it has no rows and no summary if there are none."""
    rows = [
        {
            "codec": one.codec,
            "where": one.where,
            "seeds": str(len(one.losses)),
            "up": count_text(one.up),
            "down": count_text(one.down),
            "lost": one.lost_text,
            "promise": one.promise_text,
            "verdict": one.verdict or NONE,
        }
        for one in checked
    ]
    return PromiseTable(rows, " ".join(_sentences(checked)))


def _sentences(checked: Sequence[Checked]) -> Iterator[str]:
    """Yield what is said of all promises together: how many were kept, and the worst."""
    judged = [one for one in checked if one.verdict is not None]
    if judged:
        counts = Counter(one.verdict for one in judged)
        others = [f"{counts[v]} {v}" for v in (Verdict.NOISE, Verdict.BROKEN) if counts[v]]
        yield ", ".join([f"{counts[Verdict.KEPT]} of {len(judged)} promises kept", *others]) + "."
        worst = max(judged, key=lambda one: one.share)
        yield (
            f"Worst: {worst.codec} in {worst.where}, {worst.lost_text} "
            f"where it promises {worst.promise_text}."
        )
    if unknown := len(checked) - len(judged):
        yield f"{unknown} without a verdict: that takes two seeds, and a baseline on each."
