"""Metrics by name: sums over examples that add up over clients, and the value of such sums.

They are computed in numpy, since clients may have no TensorFlow, and agree with Keras' metrics of
the same name.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featherfed.tasks.errors import TaskError

if TYPE_CHECKING:
    from featherfed.tasks.task import Task

Floats = npt.NDArray[np.float64]
Each = npt.NDArray[Any]
"""The figure of each position: float64 or bool."""
_EPSILON = 1e-7
_SHARES = {"accuracy", "auc", "f1", "precision", "recall"}
_THRESHOLDS = 200
"""Keras' number of thresholds of an AUC."""


class Metric(ABC):
    """A figure of how good answers are.

    `outputs` and `targets` are float64 [N, ...] of one shape; classes are one-hot along the last
    axis, and so are the two of a model that answers with the probability of the second.
    """

    larger_is_better = True
    kinds: frozenset[str] = frozenset()
    """The kinds of targets that it measures."""

    def __init__(self, name: str, exclusive: bool) -> None:
        """`exclusive`: exactly one class is right, so the likeliest counts as the answer."""
        self.name = name
        self.exclusive = exclusive

    def check(self, task: Task) -> None:
        """Raise TaskError unless it can measure the task."""
        if task.target.kind not in self.kinds:
            fitting = [n for n, m in _METRICS.items() if task.target.kind in m.kinds]
            raise TaskError(
                f"the metric {self.name} does not fit a target of kind {task.target.kind}; use "
                f"{', '.join(fitting)}"
            )

    @abstractmethod
    def size(self, num_outputs: int) -> int:
        """Return how many sums it needs for answers of `num_outputs` values along the last axis."""

    @abstractmethod
    def sums(self, outputs: Floats, targets: Floats) -> Floats:
        """Return the sums over these examples, float64 [size]."""

    @abstractmethod
    def value(self, sums: Floats) -> float:
        """Return the figure of sums, of any number of examples."""

    def is_possible(self, sums: Floats) -> bool:
        """Return whether examples can give these finite sums."""
        return bool((sums >= 0).all())


_CLASSES = frozenset({"class", "labels"})
_NUMBERS = frozenset({"values", "input"})


class _Mean(Metric):
    """A mean over positions: sum and number."""

    def size(self, num_outputs: int) -> int:
        return 2

    def sums(self, outputs: Floats, targets: Floats) -> Floats:
        each = self._each(outputs, targets)
        return np.array([each.sum(), each.size], np.float64)

    def value(self, sums: Floats) -> float:
        return float(sums[0] / sums[1])

    def is_possible(self, sums: Floats) -> bool:
        return bool(sums[0] >= 0 and sums[1] >= 1)

    @abstractmethod
    def _each(self, outputs: Floats, targets: Floats) -> Each:
        """Return the figure of each position."""


class _Accuracy(_Mean):
    """The share of right answers: the likeliest class, or labels on the right side of 0.5."""

    kinds = _CLASSES

    def _each(self, outputs: Floats, targets: Floats) -> Each:
        if self.exclusive:
            chosen: Each = outputs.argmax(axis=-1) == targets.argmax(axis=-1)
            return chosen
        decided: Each = (outputs > 0.5) == (targets > 0.5)
        return decided


class _TopK(_Mean):
    """The share of answers whose k likeliest classes hold the right one."""

    kinds = frozenset({"class"})

    def _each(self, outputs: Floats, targets: Floats) -> Each:
        k = int(self.name.removeprefix("top"))
        right = (outputs * targets).sum(axis=-1, keepdims=True)
        among: Each = (outputs > right).sum(axis=-1) < k
        return among


class _Perplexity(_Mean):
    """The exponential of the mean cross-entropy."""

    kinds = frozenset({"class"})
    larger_is_better = False

    def _each(self, outputs: Floats, targets: Floats) -> Each:
        each: Floats = -np.log(np.clip((outputs * targets).sum(axis=-1), _EPSILON, 1.0))
        return each

    def value(self, sums: Floats) -> float:
        return math.exp(min(super().value(sums), 700.0))


class _SquaredError(_Mean):
    kinds = _NUMBERS
    larger_is_better = False

    def _each(self, outputs: Floats, targets: Floats) -> Each:
        each: Floats = np.square(outputs - targets)
        return each


class _RootSquaredError(_SquaredError):
    def value(self, sums: Floats) -> float:
        return math.sqrt(super().value(sums))


class _AbsoluteError(_Mean):
    kinds = _NUMBERS
    larger_is_better = False

    def _each(self, outputs: Floats, targets: Floats) -> Each:
        each: Floats = np.abs(outputs - targets)
        return each


class _R2(Metric):
    """The share of the targets' variance that the answers explain."""

    kinds = _NUMBERS

    def size(self, num_outputs: int) -> int:
        return 4

    def sums(self, outputs: Floats, targets: Floats) -> Floats:
        error = np.square(outputs - targets).sum()
        return np.array([error, targets.sum(), np.square(targets).sum(), targets.size])

    def value(self, sums: Floats) -> float:
        error, total, squares, number = sums.tolist()
        variance = squares - total * total / number
        return 1.0 - error / variance if variance > 0 else 0.0

    def is_possible(self, sums: Floats) -> bool:
        error, total, squares, number = sums.tolist()
        # By Cauchy and Schwarz, up to rounding.
        fits = total * total <= squares * number * (1 + 1e-3) + 1e-30
        return bool(error >= 0 and squares >= 0 and number >= 1 and fits)


class _Confusion(Metric):
    """Right, wrong and missed answers by class; their value is the mean over classes."""

    kinds = _CLASSES

    def size(self, num_outputs: int) -> int:
        return 3 * num_outputs

    def sums(self, outputs: Floats, targets: Floats) -> Floats:
        width = targets.shape[-1]
        said = outputs > 0.5
        if self.exclusive:
            said = outputs.argmax(axis=-1)[..., None] == np.arange(width)
        said = said.reshape(-1, width)
        true = (targets > 0.5).reshape(-1, width)
        return np.concatenate(
            [(said & true).sum(0), (said & ~true).sum(0), (~said & true).sum(0)]
        ).astype(np.float64)

    def value(self, sums: Floats) -> float:
        right, wrong, missed = sums.reshape(3, -1)
        each = self._by_class(right, wrong, missed)
        return float(np.mean(each))

    @abstractmethod
    def _by_class(self, right: Floats, wrong: Floats, missed: Floats) -> Floats:
        """Return the figure of each class."""


class _F1(_Confusion):
    def _by_class(self, right: Floats, wrong: Floats, missed: Floats) -> Floats:
        return right / np.maximum(right + (wrong + missed) / 2.0, _EPSILON)


class _Precision(_Confusion):
    def _by_class(self, right: Floats, wrong: Floats, missed: Floats) -> Floats:
        return right / np.maximum(right + wrong, _EPSILON)


class _Recall(_Confusion):
    def _by_class(self, right: Floats, wrong: Floats, missed: Floats) -> Floats:
        return right / np.maximum(right + missed, _EPSILON)


class _Auc(Metric):
    """The area under the ROC curve, at Keras' thresholds.

    Of two classes it is that of the second, otherwise that of all classes or labels together.
    """

    kinds = _CLASSES

    def size(self, num_outputs: int) -> int:
        return 2 * (_THRESHOLDS + 1)

    def sums(self, outputs: Floats, targets: Floats) -> Floats:
        if self.exclusive and targets.shape[-1] == 2:
            outputs, targets = outputs[..., 1], targets[..., 1]
        limits = np.linspace(0.0, 1.0, _THRESHOLDS)
        limits[0], limits[-1] = -_EPSILON, 1.0 + _EPSILON
        above = np.searchsorted(limits, outputs.ravel(), side="left")
        true = targets.ravel() > 0.5
        counts = [np.bincount(above[which], minlength=_THRESHOLDS + 1) for which in (true, ~true)]
        return np.concatenate(counts).astype(np.float64)

    def value(self, sums: Floats) -> float:
        rates = []
        for counts in sums.reshape(2, -1):
            # By threshold: how many answers lie above it.
            over = counts[::-1].cumsum()[::-1][1:]
            rates.append(over / max(counts.sum(), _EPSILON))
        hits, alarms = rates
        return float(np.sum((alarms[:-1] - alarms[1:]) * (hits[:-1] + hits[1:]) / 2.0))


_METRICS: dict[str, type[Metric]] = {
    "accuracy": _Accuracy,
    "perplexity": _Perplexity,
    "auc": _Auc,
    "f1": _F1,
    "precision": _Precision,
    "recall": _Recall,
    "mae": _AbsoluteError,
    "mse": _SquaredError,
    "rmse": _RootSquaredError,
    "r2": _R2,
}
DEFAULT_METRICS = {
    "class": ("accuracy",),
    "labels": ("f1", "auc"),
    "values": ("mae", "rmse"),
    "input": ("mse",),
}
"""The metrics of a task that names none, by the kind of its target."""


def metric(name: str, exclusive: bool = True) -> Metric:
    """Return the metric `name`; raise TaskError with the known names if there is none."""
    if re.fullmatch(r"top[1-9]\d?", name):
        return _TopK(name, exclusive)
    if name not in _METRICS:
        raise TaskError(f"no metric {name!r:.60}; use one of {', '.join(_METRICS)}, top5")
    return _METRICS[name](name, exclusive)


def split_name(name: str) -> tuple[str, str]:
    """Return the target and the metric that a name says; no target where there is but one.

    No metric's own name has an underscore, so the last one divides: `left_arm_mae` is of the target
    `left_arm`.
    """
    target, _, own = name.rpartition("_")
    return target, own


def is_share(name: str) -> bool:
    """Return whether a metric counts right answers in some way, as a share from 0 to 1."""
    own = split_name(name)[1]
    return own in _SHARES or re.fullmatch(r"top\d+", own) is not None


def is_larger_better(name: str) -> bool:
    """Return whether a larger value of a metric, or of the loss, is better.

    A metric may be named after one of several targets. Raises TaskError for one that there is not.
    """
    return name != "loss" and metric(split_name(name)[1]).larger_is_better


def is_better(name: str, new: float, old: float) -> bool:
    """Return whether `new` is a better value of a metric, or of the loss, than `old`."""
    return new > old if is_larger_better(name) else new < old
