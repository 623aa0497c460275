"""Scores of a model on examples: sums that can be added over batches and clients, and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featherfed.tasks.arrays import read
from featherfed.tasks.errors import TaskError
from featherfed.tasks.losses import losses
from featherfed.tasks.metrics import Metric, metric, split_name
from featherfed.tasks.records import fields
from featherfed.tasks.scaling import FeatureScale, Scaling
from featherfed.tasks.task import TargetKind, Task, Values

Sums = npt.NDArray[np.float64]
"""float64 [size]: number of examples, sum of losses, and the sums of each metric in order."""
Predict = Callable[[Sequence[Values]], npt.NDArray[Any]]
"""Prepared inputs [N, ...] each -> a model's answers, float32 [N, ...], or records of such by the
names of several targets (records.py)."""
ROWS = 2048
"""Examples that are scored at once: bounds the memory that one-hot targets take."""


class Scoring:
    """Scores answers to a task by its loss and metrics."""

    def __init__(self, task: Task, scaling: Scaling | None = None) -> None:
        self._names = task.target.names
        scales = (scaling or Scaling.none(task)).of_targets
        weights = [target.weight for target in task.target.each]
        self._answers = [_Answers(*each) for each in zip(task.parts, scales, weights, strict=True)]
        self._metrics = [self._measure(name) for name in task.metrics]
        self.size = 2 + sum(item.size for item in self._metrics)
        """Length of the sums."""

    def _measure(self, name: str) -> _Measure:
        """Return the metric of this name, which of several targets' metrics says the target."""
        if not self._names:
            return self._answers[0].measure(name, 0, name)
        target, own = split_name(name)
        place = self._names.index(target)
        return self._answers[place].measure(own, place, name)

    def sums(self, outputs: Values, inputs: Sequence[Values], targets: Values | None) -> Sums:
        """Return the sums of answers [N, ...] to examples: prepared inputs, targets as stored."""
        total = np.zeros(self.size)
        for start in range(0, len(outputs), ROWS):
            rows = slice(start, start + ROWS)
            some = None if targets is None else targets[rows]
            total += self._sums(outputs[rows], [values[rows] for values in inputs], some)
        return total

    def scores(self, sums: Sums) -> dict[str, float]:
        """Return the mean loss and the metrics by name, of at least one example."""
        found = {"loss": float(sums[1] / sums[0])}
        start = 2
        for item in self._metrics:
            found[item.name] = item.metric.value(sums[start : start + item.size])
            start += item.size
        return found

    def check(self, sums: Sums) -> None:
        """Raise TaskError unless these can be sums of at least one example."""
        if sums.shape != (self.size,):
            raise TaskError(f"{len(sums)} sums where the task's metrics have {self.size}")
        if not sums[0] >= 1 or not np.isfinite(sums).all():
            raise TaskError("sums that are not finite, or of no example")
        if sums[1] < -1e-3 * sums[0]:  # rounding may make a loss of 0 a little less
            raise TaskError("a loss below 0")
        start = 2
        for item in self._metrics:
            if not item.metric.is_possible(sums[start : start + item.size]):
                raise TaskError(f"sums of the metric {item.name} that no examples give")
            start += item.size

    def is_usable(self, scores: dict[str, float]) -> bool:
        """Return whether all scores are finite."""
        return all(map(math.isfinite, scores.values()))

    def _sums(self, outputs: Values, inputs: Sequence[Values], targets: Values | None) -> Sums:
        wanted: Sequence[Values | None] = [None] * len(self._answers)
        if targets is not None:
            wanted = fields(targets, self._names)
        found = fields(outputs, self._names)
        compared = [
            answers.compared(own, inputs, true)
            for answers, own, true in zip(self._answers, found, wanted, strict=True)
        ]
        loss = sum(item.loss for item in compared)
        parts = []
        for item in self._metrics:
            of = compared[item.place]
            parts.append(item.metric.sums(of.measured, of.true))
        return np.concatenate([[float(len(outputs)), loss], *parts])


class _Measure(NamedTuple):
    """A metric by its full name, the place of the target it is of, and how many sums it needs."""

    name: str
    place: int
    metric: Metric
    size: int


class _Compared(NamedTuple):
    """The weighted sum of losses, and answers and targets as they are measured."""

    loss: float
    measured: Sums
    true: Sums


class _Answers:
    """Compares answers to one target with what is true."""

    def __init__(self, task: Task, scale: FeatureScale | None, weight: float) -> None:
        """`task`: of that target alone; `weight`: of its loss."""
        self._task, self._scale, self._weight = task, scale, weight

    def measure(self, metric_name: str, place: int, name: str) -> _Measure:
        """Return a metric of this target."""
        target = self._task.target
        found = metric(metric_name, target.kind is TargetKind.CLASS)
        width = len(target.class_names) or (self._task.target_shape or (1,))[-1]
        return _Measure(name, place, found, found.size(width))

    def compared(
        self, outputs: Values, inputs: Sequence[Values], targets: Values | None
    ) -> _Compared:
        """Return what answers [N, ...] to prepared inputs are worth, targets as stored."""
        answers = outputs.astype(np.float64)
        learned, true = self._targets(inputs, targets)
        answers = answers.reshape(len(answers), *learned.shape[1:-1], -1)
        loss = self._task.loss
        assert loss is not None, "a single target always has a loss"
        if answers.shape != learned.shape:  # the probability of the second of two classes
            answers = both_classes(answers)
        each = losses(loss, answers, learned)
        measured = answers if self._scale is None else self._scale.invert(answers)
        return _Compared(self._weight * float(each.sum()), measured, true)

    def _targets(self, inputs: Sequence[Values], targets: Values | None) -> tuple[Sums, Sums]:
        """Return targets as they are learned and as they are measured, float64 [N, ..., width]."""
        task, target = self._task, self._task.target
        if target.kind is TargetKind.INPUT:
            own = task.inputs[0].seen(inputs[0]).astype(np.float64)
            return _with_axis(own), _with_axis(own)
        if targets is None:
            raise TaskError("these examples have no targets to measure answers by")
        if target.kind is TargetKind.CLASS:
            hot = (targets[..., None] == np.arange(len(target.class_names))).astype(np.float64)
            return hot, hot
        values = _with_axis(targets.astype(np.float64))
        return values if self._scale is None else self._scale.apply(values), values


def both_classes(answers: Values) -> Values:
    """Return the probabilities of two classes, of answers [..., 1] with that of the second."""
    both: Values = np.concatenate([1.0 - answers, answers], axis=-1)
    return both


def _with_axis(values: Sums) -> Sums:
    return values[:, None] if values.ndim == 1 else values


def evaluate(
    scoring: Scoring,
    predict: Predict,
    inputs: Sequence[Values],
    targets: Values | None,
    *,
    prepare: Callable[[Sequence[Values]], Sequence[Values]] = lambda inputs: inputs,
    batch: int = ROWS,
) -> Sums:
    """Return the sums of a model's answers to examples, `batch` of them at once.

    `prepare` makes prepared inputs of `inputs`, unless they are; targets are as stored.
    """
    total = np.zeros(scoring.size)
    for start in range(0, len(inputs[0]), batch):
        rows = slice(start, start + batch)
        some = prepare([read(values, rows) for values in inputs])
        wanted = None if targets is None else read(targets, rows)
        total += scoring.sums(predict(some), some, wanted)
    return total
