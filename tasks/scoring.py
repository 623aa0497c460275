"""Scores of a model on examples: sums that can be added over batches and clients, and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from featherfed.tasks.arrays import read
from featherfed.tasks.errors import TaskError
from featherfed.tasks.losses import losses
from featherfed.tasks.metrics import metric
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import TargetKind, Task, Values

Sums = npt.NDArray[np.float64]
"""float64 [size]: number of examples, sum of losses, and the sums of each metric in order."""
Predict = Callable[[Sequence[Values]], npt.NDArray[np.float32]]
"""Prepared inputs [N, ...] each -> a model's answers, float32 [N, ...]."""
ROWS = 2048
"""Examples that are scored at once: bounds the memory that one-hot targets take."""


class Scoring:
    """Scores answers to a task by its loss and metrics."""

    def __init__(self, task: Task, scaling: Scaling | None = None) -> None:
        self._task = task
        self._scaling = scaling or Scaling.none(task)
        target = task.target
        exclusive = target.kind is TargetKind.CLASS
        self._metrics = [metric(name, exclusive) for name in task.metrics]
        width = len(target.class_names) or (task.target_shape or (1,))[-1]
        self._sizes = [item.size(width) for item in self._metrics]
        self.size = 2 + sum(self._sizes)
        """Length of the sums."""

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
        for item, size in zip(self._metrics, self._sizes, strict=True):
            found[item.name] = item.value(sums[start : start + size])
            start += size
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
        for item, size in zip(self._metrics, self._sizes, strict=True):
            if not item.is_possible(sums[start : start + size]):
                raise TaskError(f"sums of the metric {item.name} that no examples give")
            start += size

    def is_usable(self, scores: dict[str, float]) -> bool:
        """Return whether all scores are finite."""
        return all(map(math.isfinite, scores.values()))

    def _sums(self, outputs: Values, inputs: Sequence[Values], targets: Values | None) -> Sums:
        answers = outputs.astype(np.float64)
        learned, true = self._targets(inputs, targets)
        answers = answers.reshape(len(answers), *learned.shape[1:-1], -1)
        loss = self._task.loss
        assert loss is not None, "a task always has a loss"
        if answers.shape != learned.shape:  # the probability of the second of two classes
            answers = both_classes(answers)
        each = losses(loss, answers, learned)
        measured = answers if self._scaling.target is None else self._scaling.target.invert(answers)
        parts = [item.sums(measured, true) for item in self._metrics]
        return np.concatenate([[float(len(outputs)), each.sum()], *parts])

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
        if self._scaling.target is None:
            return values, values
        return self._scaling.target.apply(values), values


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
