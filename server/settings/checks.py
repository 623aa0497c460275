"""Cross-checks of settings that are each fine alone: yield what is wrong and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from featherfed.compression.registry import parse_codec
from featherfed.server.rounds.uplink import fixed_codec
from featherfed.server.settings.rule import Rule
from featherfed.tasks.scoring import Scoring
from featherfed.tasks.task import Input, Target, Task

MAX_SUMS = 2**14
"""Most sums of an evaluation: two of them, and a chunk of the update, are one message."""
MAX_FEATURES = 2**13
"""Most features that are standardised: a client's statistics are part of one message."""
_DENSE = '"quantize(8) | zstd" or "float16 | zstd"'


def check_rule(
    rule: Rule, uplink: str, fallback: str, minimum: int, fraction: float
) -> Iterator[str]:
    """Yield why updates cannot be aggregated by `rule`; nothing for the mean."""
    if not rule.is_robust:
        return
    codecs = {"uplink": fixed_codec(uplink), "fallback": parse_codec(fallback)}
    for key, codec in codecs.items():
        if codec is None or not codec.traits.dense:
            yield (
                f"aggregation.rule {rule.name!r} compares updates value by value, but those of "
                f"compression.{key} {(uplink if key == 'uplink' else fallback)!r} hold zeros or "
                f"noise where a value was not sent; use {_DENSE}, or the rule 'mean'"
            )
    cohort = math.ceil(fraction * minimum)
    if cohort < rule.min_updates:
        yield (
            f"aggregation.rule {rule.name!r} needs {rule.min_updates} updates a round to withstand "
            f"{rule.byzantine} hostile clients, but clients.minimum {minimum} and clients.fraction "
            f"{fraction} promise {cohort}; raise them, or lower aggregation.byzantine"
        )


def check_privacy(
    rule: Rule, uplink: str, fallback: str, broadcast: str, evaluated: int
) -> Iterator[str]:
    """Yield each setting that would reveal more about clients than the noisy mean does."""
    if rule.is_robust:
        yield (
            f"aggregation.rule {rule.name!r} has no known sensitivity for the noise of [privacy]; "
            "use the rule 'mean', or no privacy.noise_multiplier"
        )
    codecs = {"uplink": fixed_codec(uplink), "fallback": parse_codec(fallback)}
    for key, codec in codecs.items():
        if codec is None or codec.traits.statistics_as_values:
            yield (
                f"compression.{key} {(uplink if key == 'uplink' else fallback)!r} sends sketches, "
                'which carry state and importance past the clipping of [privacy]; use "exact" or '
                f"a codec such as {_DENSE}"
            )
    if broadcast != "aggregate":
        yield (
            f"compression.broadcast {broadcast!r} may forward updates without the noise of "
            '[privacy]; set it to "aggregate"'
        )
    if evaluated:
        yield (
            "evaluation.clients would report how good clients' own models are, without the noise "
            "of [privacy]; set it to 0"
        )


def check_privacy_of_sums(holdout: float, standardizes: bool) -> Iterator[str]:
    """Yield each setting by which clients would send sums over their examples without noise."""
    if holdout:
        yield (
            "evaluation.holdout would let clients report how good models are on their own "
            "examples, without the noise of [privacy]; set it to 0, and give evaluation.dataset "
            "for the server to evaluate on"
        )
    if standardizes:
        yield (
            "task: standardize = true lets clients send sums of their features, without the noise "
            "of [privacy]; standardise the data beforehand, by figures that everybody knows"
        )


def check_evaluation(target: bool, evaluated_by: str | None) -> Iterator[str]:
    """Yield why nobody can say when the run's target is reached."""
    if target and evaluated_by is None:
        yield (
            "evaluation.target needs somebody to evaluate models; give evaluation.dataset, or let "
            "evaluation.holdout be above 0"
        )


def check_task(task: Task, share_held_out: float, target: str | None) -> Iterator[str]:
    """Yield why a run cannot be of this task; `target`: the metric that ends it early, if any."""
    if target is not None and target not in ("loss", *task.metrics):
        known = ", ".join(("loss", *task.metrics))
        yield (
            f"evaluation.target.metric: {target!r} is no metric of the task; use one of {known}, "
            "or add it to task.metrics"
        )
    if share_held_out and (size := Scoring(task).size) > MAX_SUMS:
        yield (
            f"the metrics {', '.join(task.metrics)} need {size} sums of every client, and a "
            f"message takes {MAX_SUMS}; use metrics that need fewer, such as accuracy, or give "
            "evaluation.dataset and set evaluation.holdout to 0"
        )
    parts: tuple[Input | Target, ...] = (*task.inputs, *task.target.each)
    features = sum(part.num_features for part in parts if part.standardize)
    if features > MAX_FEATURES:
        yield (
            f"the task standardises {features} features, and a message takes the statistics of "
            f"{MAX_FEATURES}; standardise the largest input beforehand, and drop its standardize"
        )
