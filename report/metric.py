"""How metrics are called, and how values are written: shares in percent, others as numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from featherfed.report.summary import NONE, number_text, percent_text
from featherfed.tasks.metrics import is_share, split_name

_TITLES = {
    "auc": "AUC",
    "f1": "F1",
    "mae": "MAE",
    "mse": "MSE",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "rmse": "RMSE",
}


def title(name: str) -> str:
    """Return what a metric, or the loss, is called in a heading: "MAE", "Accuracy", "pulse MAE"."""
    target, own = split_name(name)
    if target:
        return f"{target} {word(own)}"
    return _TITLES.get(name) or name[:1].upper() + name[1:]


def word(name: str) -> str:
    """Return what a metric, or the loss, is called in a sentence: "MAE", "accuracy"."""
    target, own = split_name(name)
    if target:
        return f"{target} {word(own)}"
    return _TITLES.get(name, name)


def value_text(name: str, value: float | None) -> str:
    """Return a value of a metric, or of the loss, as a text."""
    return percent_text(value) if is_share(name) else number_text(value)


def range_text(name: str, values: Sequence[float] | None) -> str:
    """Return the lowest and the highest of some values."""
    if not values:
        return NONE
    return f"{value_text(name, min(values))} to {value_text(name, max(values))}"


def lost_unit(name: str) -> str:
    """Return what losses are told in: points of shares, percent of other metrics."""
    return "points" if is_share(name) else "%"


def loss_scale(name: str, larger_is_better: bool, baseline: Sequence[float]) -> float | None:
    """Return what makes `baseline - score` a loss in `lost_unit`; None if it cannot be told.

    `baseline`: the scores compared with. Percent are of their mean, of which 0 has none.
    """
    value = 1.0 if is_share(name) else abs(statistics.mean(baseline)) if baseline else 0.0
    if not value:
        return None
    return (100 if larger_is_better else -100) / value


def slightly_worse(name: str, larger_is_better: bool, score: float) -> float:
    """Return a score that is worse by one point of a share, or one percent of another metric."""
    step = 0.01 if is_share(name) else 0.01 * abs(score)
    return score - step if larger_is_better else score + step


def lost_title(name: str) -> str:
    """Return the heading of `lost_text`."""
    return "Points lost" if is_share(name) else "Difference"


def lost_text(name: str, scores: Sequence[float], reference: Sequence[float]) -> str:
    """Return what scores lose against a reference, pair by pair: mean and standard deviation.

    Shares give the points that are lost, other metrics the difference as it is.
    """
    pairs = list(zip(scores, reference, strict=True))
    if not pairs:
        return NONE
    if is_share(name):
        differences = [100 * (base - score) for score, base in pairs]
        number: Callable[[float], str] = "{:.2f}".format
    else:
        differences = [score - base for score, base in pairs]
        number = number_text
    mean = number(statistics.mean(differences))
    text = mean if mean.startswith("-") else f"+{mean}"
    if len(differences) < 2:
        return text
    return f"{text} ± {number(statistics.stdev(differences))}"
