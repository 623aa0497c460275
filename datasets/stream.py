"""Takes examples from an iterator, which may give more than fit into memory, to files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.tasks.arrays import ArrayFile, rows_at_once
from featherfed.tasks.errors import TaskError
from featherfed.tasks.task import TargetKind, Task


def from_iterator(examples: Iterable[Any], task: Task) -> Dataset:
    """Return the examples that an iterator gives one by one, on disk, as the task asks for them.

    Each is (x, y), or x alone where the input is the target; x is an array, or a tuple of arrays
    for several inputs, and y an array, or a dict of arrays by name for several targets. Raises
    DatasetError, with the example's number from 0, for what does not fit, or if the disk does not
    take them.
    """
    rows = min(rows_at_once(given.shape, np.float64) for given in task.inputs)
    iterator = iter(examples)
    files: list[ArrayFile] = []
    count = 0
    with ExitStack() as opened:
        try:
            while some := list(islice(iterator, rows)):
                data = _together(some, task, count)
                arrays = [*data.inputs, *([] if data.targets is None else [data.targets])]
                files = files or [
                    opened.enter_context(ArrayFile(array.shape[1:], array.dtype))
                    for array in arrays
                ]
                for file, array in zip(files, arrays, strict=True):
                    file.add(array)
                count += len(data)
        except TaskError as error:  # of the disk
            raise DatasetError(str(error)) from error
        written = [file.array() for file in files]
    if not written:
        raise DatasetError("the iterator gave no example")
    inputs = tuple(written[: len(task.inputs)])
    targets = written[-1] if len(written) > len(inputs) else None
    return Dataset(inputs, targets, task.target.class_names)


def _together(some: Sequence[Any], task: Task, first: int) -> Dataset:
    """Return several examples as one data set; `first` is the number of the first."""
    split = [_split(example, task, number) for number, example in enumerate(some, first)]
    try:
        return _dataset(split, task)
    except ValueError as whole:
        for number, one in enumerate(split, first):
            try:
                _dataset([one], task)
            except ValueError as error:
                raise DatasetError(f"example {number} of the iterator: {error}") from error
        last = first + len(some) - 1
        raise DatasetError(f"examples {first} to {last} of the iterator: {whole}") from whole


def _dataset(split: Sequence[tuple[tuple[Any, ...], Any]], task: Task) -> Dataset:
    inputs = tuple(
        np.stack([np.asarray(x[place]) for x, _ in split]) for place in range(len(task.inputs))
    )
    alone = task.target.kind is TargetKind.INPUT
    return Dataset(inputs, None if alone else _stacked([y for _, y in split])).fit(task)


def _stacked(targets: Sequence[Any]) -> Any:
    """Return the targets of several examples: an array, or a dict of arrays by name."""
    if not isinstance(targets[0], Mapping):
        return np.stack([np.asarray(y) for y in targets])
    names = targets[0].keys()
    if any(not isinstance(y, Mapping) or y.keys() != names for y in targets):
        raise DatasetError("the targets of examples have different names; give each all of them")
    return {name: np.stack([np.asarray(y[name]) for y in targets]) for name in names}


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
