"""Loads a data set from a Python function that the user names as ``module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from featherfed.datasets.dataset import Dataset, DatasetError


def call_function(spec: str, class_names: Sequence[str] | None = None) -> Dataset:
    """Import ``module``, call ``function()`` and return its `Dataset`.

    The function may also return ``(images, labels)``, read as by `Dataset.from_images`. Exceptions
    of the function itself are not caught. Raises `DatasetError` when the module or the function is
    missing or the result is something else.
    """
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
    result = function()
    if isinstance(result, Dataset):
        return result
    if isinstance(result, tuple) and len(result) == 2:
        try:
            return Dataset.from_images(*result, class_names)
        except DatasetError as error:
            raise DatasetError(f"'{spec}': {error}") from error
    raise DatasetError(
        f"'{spec}' returned {type(result).__name__}; return a Dataset or (images, labels)"
    )
