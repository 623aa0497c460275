"""Counts for what a classifier takes the examples of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featherfed.tasks.arrays import read
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import ROWS, Predict, both_classes
from featherfed.tasks.task import TargetKind, Task, Values

MOST_CLASSES = 20
"""A matrix of more of them is too large to be read."""


def confusion(
    task: Task,
    scaling: Scaling,
    predict: Predict,
    inputs: Sequence[Values],
    targets: Values | None,
) -> list[list[int]] | None:
    """Return how many examples of each true class, a row, are taken for each class, a column.

    Inputs and targets are as stored. None unless the target is one class an example, of at most 20.
    """
    target = task.target
    classes = len(target.class_names)
    fits = target.kind is TargetKind.CLASS and not target.shape and not target.parts
    if targets is None or not fits or classes > MOST_CLASSES:
        return None
    counts = np.zeros((classes, classes), np.int64)
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        answers = predict(scaling.prepare([read(values, rows) for values in inputs]))
        answers = answers.reshape(len(answers), -1)
        if answers.shape[1] == 1:  # the probability of the second of two classes
            answers = both_classes(answers)
        np.add.at(counts, (read(targets, rows), answers.argmax(axis=1)), 1)
    return [[int(count) for count in row] for row in counts]
