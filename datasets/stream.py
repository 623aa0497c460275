"""Takes examples from an iterator, which may give more than fit into memory, to a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.tasks.arrays import PART, new_on_disk
from featherfed.tasks.task import TargetKind, Task, Values


def from_iterator(examples: Iterable[Any], task: Task) -> Dataset:
    """Return the examples that an iterator gives one by one, on disk, as the task asks for them.

    Each is (x, y), or x alone where the input is the target; x is an array, or a tuple of arrays
    for several inputs. Raises DatasetError, with the example's number, for what does not fit.
    """
    writer = _Writer(task)
    iterator = iter(examples)
    while some := list(islice(iterator, PART)):
        writer.add(_together(some, task, writer.count))
    return writer.dataset()


def _together(some: list[Any], task: Task, first: int) -> Dataset:
    """Return several examples as one data set; `first` is the number of the first."""
    inputs: list[list[Any]] = [[] for _ in task.inputs]
    targets: list[Any] = []
    for number, example in enumerate(some, first):
        x, y = _split(example, task, number)
        for values, value in zip(inputs, x, strict=True):
            values.append(value)
        targets.append(y)
    try:
        arrays = tuple(np.stack([np.asarray(value) for value in values]) for values in inputs)
        wanted = None if task.target.kind is TargetKind.INPUT else np.array(targets)
        return Dataset(arrays, wanted).fit(task)
    except ValueError as error:
        last = first + len(some) - 1
        raise DatasetError(f"examples {first} to {last} of the iterator: {error}") from error


def _split(example: Any, task: Task, number: int) -> tuple[tuple[Any, ...], Any]:
    alone = task.target.kind is TargetKind.INPUT
    if not alone and not (isinstance(example, tuple) and len(example) == 2):
        raise DatasetError(f"example {number} of the iterator is not (x, y)")
    x, y = (example, None) if alone else example
    parts = x if isinstance(x, tuple) else (x,)
    if len(parts) != len(task.inputs):
        raise DatasetError(
            f"example {number} of the iterator has {len(parts)} inputs; the task has "
            f"{len(task.inputs)}"
        )
    return parts, y


class _Writer:
    """Collects examples in arrays on disk that double when they are full."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._arrays: list[Values] = []
        self.count = 0

    def add(self, data: Dataset) -> None:
        """Append examples."""
        given = list(_arrays(data))
        if not self._arrays:
            self._arrays = [new_on_disk((PART, *a.shape[1:]), a.dtype) for a in given]
        end = self.count + len(data)
        while end > len(self._arrays[0]):
            self._arrays = [_doubled(array) for array in self._arrays]
        for array, values in zip(self._arrays, given, strict=True):
            array[self.count : end] = values
        self.count = end

    def dataset(self) -> Dataset:
        """Return all examples."""
        if not self.count:
            raise DatasetError("the iterator gave no example")
        arrays = [array[: self.count] for array in self._arrays]
        has_targets = len(arrays) > len(self._task.inputs)
        targets = arrays.pop() if has_targets else None
        return Dataset(tuple(arrays), targets, self._task.target.class_names)


def _arrays(data: Dataset) -> Iterator[Values]:
    yield from data.inputs
    if data.targets is not None:
        yield data.targets


def _doubled(array: Values) -> Values:
    larger = new_on_disk((2 * len(array), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
