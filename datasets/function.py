"""Loads a data set from a Python function that the user names as ``module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from featherfed.datasets.dataset import Dataset, DatasetError, as_targets
from featherfed.datasets.stream import from_iterator
from featherfed.tasks.task import TargetKind, Task


def call_function(spec: str, task: Task) -> Dataset:
    """Import ``module``, call ``function()`` and return its `Dataset`.

    The function may also return ``(x, y)``, or ``x`` alone where the input is the target; ``x`` is
    an array, or a tuple of arrays for several inputs, and ``y`` an array, or a dict of arrays by
    name for several targets. Or it returns an iterator of such examples, one by one, which may be
    more than fit into memory (see stream.py). Exceptions of the function itself are not caught.
    Raises `DatasetError` when the module or the function is missing or the
    result is something else.
    """
    result = find_function(spec)()
    if isinstance(result, Dataset):
        return result
    try:
        if isinstance(result, Iterator):
            return from_iterator(result, task)
        return _dataset(result, task)
    except DatasetError as error:
        raise DatasetError(f"'{spec}': {error}") from error


def find_function(spec: str) -> Callable[[], object]:
    """Import ``module`` and return its ``function``; raise `DatasetError` if there is none."""
    module_name, _, function_name = spec.partition(":")
    # A console script, unlike `python -m`, does not search the folder it is started in.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DatasetError(
            f"'{spec}': cannot import {module_name} ({error});"
            " give a module in this folder or on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DatasetError(f"'{spec}': {module_name} has no function {function_name}")
    found: Callable[[], object] = function
    return found


def _dataset(result: object, task: Task) -> Dataset:
    if isinstance(result, np.ndarray):
        return Dataset((result,))
    if _is_inputs_alone(result, task):
        return Dataset(tuple(result))  # type: ignore[arg-type]
    if not isinstance(result, tuple) or len(result) != 2:
        raise DatasetError(
            f"returned {type(result).__name__}; return (x, y), an iterator of such examples, or a"
            " Dataset"
        )
    x, y = result
    inputs = tuple(map(np.asarray, x)) if isinstance(x, (tuple, list)) else (np.asarray(x),)
    return Dataset(inputs, as_targets(y))


def _is_inputs_alone(result: object, task: Task) -> bool:
    """Whether it is x alone, of several inputs, of which the first is the target."""
    several = len(task.inputs) > 1 and task.target.kind is TargetKind.INPUT
    return (
        several
        and isinstance(result, tuple)
        and len(result) == len(task.inputs)
        and all(isinstance(array, np.ndarray) for array in result)
    )
