"""Standardisation that nobody needs to see the data for: sums of features, and what follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featherfed.tasks.arrays import mapped, read, rows_at_once
from featherfed.tasks.errors import TaskError
from featherfed.tasks.records import fields, together
from featherfed.tasks.task import Input, Target, Task, Values

Floats = npt.NDArray[np.float64]
MAX_COUNT = 10**15
"""More values of a feature than any device has."""


@dataclass(frozen=True)
class FeatureSums:
    """Of each feature of a tensor: how many values there are, their sum, and that of their squares.

    `sums` and `squares` are float64 [features].
    """

    count: float
    sums: Floats
    squares: Floats

    @classmethod
    def of(cls, values: Values) -> FeatureSums:
        """Return the sums of float32 [N, ..., features], or [N] for a single feature."""
        width = values.shape[-1] if values.ndim > 1 else 1
        # Distances from the first values are summed, which keeps digits where all are far from 0.
        start = read(values, slice(0, 1)).astype(np.float64).reshape(-1, width)[0]
        count, far, squares = 0, np.zeros(width), np.zeros(width)
        rows = rows_at_once(values.shape[1:], np.float64)
        for first in range(0, len(values), rows):
            part = read(values, slice(first, first + rows)).astype(np.float64)
            distances = part.reshape(-1, width) - start
            count += len(distances)
            far += distances.sum(axis=0)
            squares += np.square(distances).sum(axis=0)
        return cls(float(count), count * start + far, start * (count * start + 2.0 * far) + squares)

    def __add__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(
            self.count + other.count, self.sums + other.sums, self.squares + other.squares
        )

    def check(self, num_features: int) -> None:
        """Raise TaskError unless these can be the sums of that many features."""
        if self.sums.shape != (num_features,) or self.squares.shape != (num_features,):
            raise TaskError(f"sums of {len(self.sums)} features; the task has {num_features}")
        if not 1 <= self.count <= MAX_COUNT or not math.isfinite(self.squares.sum()):
            raise TaskError("sums of features that are not finite, or of no value at all")
        # By Cauchy and Schwarz, up to rounding.
        most = self.squares * self.count
        if not (np.square(self.sums) <= most * (1 + 1e-6) + 1e-300).all():
            raise TaskError("sums of features that contradict their squares")

    def scale(self) -> FeatureScale:
        """Return mean and deviation; the deviation of what never changes is 1."""
        mean = self.sums / self.count
        variance = np.maximum(self.squares / self.count - mean * mean, 0.0)
        deviation = np.sqrt(variance)
        # Below this, which is less than three steps of a float32, a difference is rounding.
        still = deviation <= 3e-7 * np.maximum(np.abs(mean), 1e-12)
        deviation[still] = 1.0
        return FeatureScale(mean.astype(np.float32), deviation.astype(np.float32))


@dataclass(frozen=True)
class FeatureScale:
    """Mean and standard deviation of each feature, float32 [features]."""

    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]

    def apply(self, values: Values) -> Values:
        """Return float32 [N, ..., features] (or [N]) standardised."""
        mean, deviation = self._fitting(values)
        scaled: Values = (values - mean) / deviation
        return scaled

    def invert(self, values: Values) -> Values:
        """Return standardised values in their own units, in their own dtype."""
        mean, deviation = self._fitting(values)
        restored: Values = values * deviation + mean
        return restored

    def check(self, num_features: int) -> None:
        """Raise TaskError unless it is finite and of that many features."""
        for values in (self.mean, self.deviation):
            if values.shape != (num_features,) or not np.isfinite(values).all():
                raise TaskError(f"a scale that does not fit {num_features} features")
        if not (self.deviation > 0).all():
            raise TaskError("a scale with a deviation that is not above 0")

    def _fitting(self, values: Values) -> tuple[Values, Values]:
        if values.ndim < 2:
            return self.mean[0], self.deviation[0]
        return self.mean, self.deviation


@dataclass(frozen=True)
class Scaling:
    """The scales of a task's inputs and target; None for what is not standardised.

    `targets`: the scales of several targets, in their order, whose `target` is None.
    """

    inputs: tuple[FeatureScale | None, ...]
    target: FeatureScale | None = None
    targets: tuple[FeatureScale | None, ...] = ()

    @classmethod
    def none(cls, task: Task) -> Scaling:
        """Return the scaling of a task that standardises nothing."""
        return cls((None,) * len(task.inputs), None, (None,) * len(task.target.parts))

    @property
    def of_targets(self) -> tuple[FeatureScale | None, ...]:
        """The scale of each target that there is, in order."""
        return self.targets or (self.target,)

    def check(self, task: Task) -> None:
        """Raise TaskError unless it has exactly the scales that the task needs."""
        _check_parts("a scaling", task, self.inputs, self.target, self.targets)

    def prepare(self, inputs: Sequence[Values]) -> list[Values]:
        """Return inputs as trainers and model files take them: standardised where asked."""
        return [
            values if scale is None else mapped(values, scale.apply)
            for scale, values in zip(self.inputs, inputs, strict=True)
        ]

    def prepare_target(self, targets: Values) -> Values:
        """Return targets as they are learned."""
        if all(scale is None for scale in self.of_targets):
            return targets
        return mapped(targets, lambda part: self._of_each(part, "apply"))

    def restore(self, answers: Values) -> Values:
        """Return answers in the targets' own units, in their own dtype."""
        if all(scale is None for scale in self.of_targets):
            return answers
        return self._of_each(answers, "invert")

    def _of_each(self, values: Values, method: str) -> Values:
        """Return targets or answers, each after a method of its scale."""
        names = (values.dtype.names or ()) if self.targets else ()
        parts = [
            part if scale is None else getattr(scale, method)(part)
            for scale, part in zip(self.of_targets, fields(values, names), strict=True)
        ]
        return together(parts, names)


@dataclass(frozen=True)
class Statistics:
    """What a client tells of its data for standardisation: sums of the tensors that need it.

    `targets`: the sums of several targets, in their order, whose `target` is None.
    """

    inputs: tuple[FeatureSums | None, ...]
    target: FeatureSums | None = None
    targets: tuple[FeatureSums | None, ...] = ()

    @classmethod
    def of(cls, task: Task, inputs: Sequence[Values], targets: Values | None) -> Statistics:
        """Return the statistics of a client's examples."""
        found = tuple(
            FeatureSums.of(values) if given.standardize else None
            for given, values in zip(task.inputs, inputs, strict=True)
        )
        if targets is None:
            return cls(found)
        names = task.target.names
        of_targets = tuple(
            FeatureSums.of(values) if target.standardize else None
            for target, values in zip(task.target.each, fields(targets, names), strict=True)
        )
        return cls(found, None, of_targets) if names else cls(found, of_targets[0])

    def check(self, task: Task) -> None:
        """Raise TaskError unless these are sums of exactly what the task standardises."""
        _check_parts("statistics", task, self.inputs, self.target, self.targets)


def _check_parts(
    what: str,
    task: Task,
    inputs: Sequence[FeatureSums | FeatureScale | None],
    target: FeatureSums | FeatureScale | None,
    targets: Sequence[FeatureSums | FeatureScale | None],
) -> None:
    """Raise TaskError unless there is a part for exactly what the task standardises."""
    if len(inputs) != len(task.inputs):
        raise TaskError(f"{what} of another number of inputs")
    if len(targets) != len(task.target.parts):
        raise TaskError(f"{what} of another number of targets")
    tensors: list[Input | Target] = [*task.inputs, task.target, *task.target.parts]
    for tensor, part in zip(tensors, [*inputs, target, *targets], strict=True):
        if tensor.standardize != (part is not None):
            raise TaskError(f"{what} of other tensors than the task standardises")
        if part is not None:
            part.check(tensor.num_features)


def merge(statistics: Iterable[Statistics]) -> Scaling:
    """Return the scaling that follows from the statistics of one or more clients."""
    total: Statistics | None = None
    for item in statistics:
        total = item if total is None else _add(total, item)
    if total is None:
        raise TaskError("no client has told statistics of its data")
    return Scaling(
        tuple(None if sums is None else sums.scale() for sums in total.inputs),
        None if total.target is None else total.target.scale(),
        tuple(None if sums is None else sums.scale() for sums in total.targets),
    )


def _add(one: Statistics, other: Statistics) -> Statistics:
    def add(a: FeatureSums | None, b: FeatureSums | None) -> FeatureSums | None:
        return None if a is None or b is None else a + b

    inputs = tuple(add(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
    targets = tuple(add(a, b) for a, b in zip(one.targets, other.targets, strict=True))
    return Statistics(inputs, add(one.target, other.target), targets)
