"""Numbers of how a model's answers differ from what is true, for the plots of a history.

Everything here is numpy: answers and targets in, counts, means and quantiles out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Values = npt.NDArray[Any]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Those of `position_quantiles`."""
BINS = 10
"""Bins of `calibration`."""


def confusion(chosen: Values, true: Values, num_classes: int) -> Counts:
    """Return how often each class was taken for each, [true class, chosen class].

    `chosen` and `true` are integers of one shape, from 0 to `num_classes` - 1.
    """
    pairs = true.ravel().astype(np.int64) * num_classes + chosen.ravel().astype(np.int64)
    counts: Counts = np.bincount(pairs, minlength=num_classes**2).astype(np.int64)
    return counts.reshape(num_classes, num_classes)


def label_confusion(decided: Values, true: Values) -> Counts:
    """Return [labels, 4]: rightly given, missed, wrongly given, rightly not given.

    `decided` and `true` are bool of one shape, labels along the last axis.
    """
    said, is_so = (part.reshape(-1, part.shape[-1]).astype(bool) for part in (decided, true))
    counts = [said & is_so, ~said & is_so, said & ~is_so, ~said & ~is_so]
    return np.stack([part.sum(axis=0) for part in counts], axis=1).astype(np.int64)


@dataclass(frozen=True)
class Calibration:
    """Answers by how sure the model was, in bins of equal width from 0 to 1.

    `counts`: answers in each bin. `confidence` and `share`: their mean confidence, and the share
    that is right; NaN in empty bins. `error`: the mean distance of the two, weighted by counts (the
    expected calibration error).
    """

    counts: Counts
    confidence: Floats
    share: Floats
    error: float


def calibration(confidence: Values, right: Values, bins: int = BINS) -> Calibration:
    """Return how often answers of a confidence are right.

    `confidence` is from 0 to 1, `right` bool of the same shape; at least one answer. A confidence
    on the edge of two bins is in the upper one, but for 1.
    """
    sure, is_right = confidence.ravel().astype(np.float64), right.ravel().astype(np.float64)
    # In its own precision: 0.7 as float32 times 10 is 7, and as float64 a little less.
    place = np.clip(np.floor(confidence.ravel() * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(place, minlength=bins).astype(np.int64)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, sure, minlength=bins) / counts
        share = np.bincount(place, is_right, minlength=bins) / counts
    error = np.nansum(np.abs(mean - share) * counts) / sure.size
    return Calibration(counts, mean, share, float(error))


@dataclass(frozen=True)
class Residuals:
    """Answers minus true values, and their mean and standard deviation."""

    values: Floats
    mean: float
    deviation: float


def residuals(answers: Values, true: Values) -> Residuals:
    """Return how far answers are off; both of one shape, with at least one value."""
    values: Floats = answers.astype(np.float64) - true.astype(np.float64)
    return Residuals(values, float(values.mean()), float(values.std()))


def position_quantiles(values: Values) -> Floats:
    """Return the QUANTILES over examples at each position, [5, positions], of values [N, ...]."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    found: Floats = np.quantile(flat, QUANTILES, axis=0)
    return found


def example_errors(answers: Values, true: Values) -> Floats:
    """Return the mean squared error of each example, [N], of answers and inputs [N, ...]."""
    squares = np.square(answers.astype(np.float64) - true.astype(np.float64))
    means: Floats = squares.reshape(len(squares), -1).mean(axis=1)
    return means


def position_errors(answers: Values, true: Values) -> Floats:
    """Return the root of the mean squared error at each position of an example, [...]."""
    squares = np.square(answers.astype(np.float64) - true.astype(np.float64))
    roots: Floats = np.sqrt(squares.mean(axis=0))
    return roots


def client_spread(rounds: Sequence[Sequence[float]]) -> Floats:
    """Return [rounds, 5]: lowest, quartiles and highest of the clients' values in each round.

    NaN for a round without any.
    """
    rows = [
        np.quantile(np.asarray(values, np.float64), (0, 0.25, 0.5, 0.75, 1))
        if len(values)
        else np.full(5, np.nan)
        for values in rounds
    ]
    return np.array(rows, np.float64).reshape(len(rows), 5)
