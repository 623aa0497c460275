"""Arrays that may be larger than memory: those on disk are read and written in parts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
PART = 4096
"""Examples that are in memory at once."""


def is_on_disk(values: Values) -> bool:
    """Return whether an array is a file's content instead of memory."""
    return isinstance(values, np.memmap)


def new_on_disk(shape: tuple[int, ...], dtype: Any) -> Values:
    """Return an array of zeros in a temporary file, which goes with the array."""
    # Not /tmp, which is memory on many systems.
    folder = os.environ.get("TMPDIR") or ("/var/tmp" if Path("/var/tmp").is_dir() else None)
    with tempfile.TemporaryFile(prefix="featherfed-", dir=folder) as file:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        os.truncate(file.fileno(), max(1, size))
        return np.memmap(file, dtype, "r+", shape=shape)


def parts(count: int) -> Iterator[slice]:
    """Yield the slices that make up `count` examples."""
    for start in range(0, count, PART):
        yield slice(start, min(start + PART, count))


def mapped(values: Values, function: Callable[[Values], Values]) -> Values:
    """Return `function` of an array, example by example; on disk if the array is."""
    if not is_on_disk(values):
        return function(values)
    first = function(values[:1])
    made = new_on_disk((len(values), *first.shape[1:]), first.dtype)
    for part in parts(len(values)):
        made[part] = function(np.asarray(values[part]))
    return made


def taken(values: Values, chosen: Values) -> Values:
    """Return the examples at `chosen`, int or bool [n], as a copy; on disk if the array is."""
    if not is_on_disk(values):
        return values[chosen]
    indices = np.arange(len(values))[chosen]
    made = new_on_disk((len(indices), *values.shape[1:]), values.dtype)
    for part in parts(len(indices)):
        made[part] = values[indices[part]]
    return made
