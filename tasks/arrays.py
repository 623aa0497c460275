"""Arrays that may be larger than memory: those on disk are read and written in parts."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.tasks.errors import TaskError

Values = npt.NDArray[Any]
Shape = tuple[int, ...]
PART_BYTES = 2**22
PART_ROWS = 4096
"""Most bytes and examples that are in memory at once, but for one example that is larger."""

_SCATTERED = 16
"""Examples from all over a file between two releases of its pages: each may map 2 MiB."""


def is_on_disk(values: Values) -> bool:
    """Return whether an array is a file's content instead of memory."""
    return getattr(values, "_mmap", None) is not None


def rows_at_once(shape: Shape, dtype: Any) -> int:
    """Return how many examples of a shape make up a part, at least one."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return int(min(PART_ROWS, max(1, PART_BYTES // max(1, size))))


class ArrayFile:
    """Writes examples one after the other to a temporary file, which goes with the array.

    A context: the file is closed at its end, and lives on as the array, if that was asked for.
    Raises TaskError if the disk does not take the examples.
    """

    def __init__(self, shape: Shape, dtype: Any) -> None:
        """`shape`: of one example."""
        self._shape, self._dtype, self._count = shape, np.dtype(dtype), 0
        # Not /tmp, which is memory on many systems.
        self._folder = os.environ.get("TMPDIR") or (
            "/var/tmp" if Path("/var/tmp").is_dir() else tempfile.gettempdir()
        )
        try:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115  # __exit__ closes it
                prefix="featherfed-", dir=self._folder, buffering=0
            )
        except OSError as error:
            raise self._refusal(error) from error

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, values: Values) -> None:
        """Append examples [n, ...]."""
        rest = memoryview(values.astype(self._dtype, copy=False).tobytes())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._refusal(error) from error
        self._count += len(values)

    def array(self) -> Values:
        """Return all examples, at least one, to be read."""
        return np.memmap(self._file, self._dtype, "r", shape=(self._count, *self._shape))

    def _refusal(self, error: OSError) -> TaskError:
        return TaskError(
            f"cannot keep examples in {self._folder} ({error.strerror}); make room there, or name "
            "another folder in TMPDIR"
        )


def read(values: Values, chosen: Any) -> Values:
    """Return the examples at `chosen`, a slice or int [n], in memory.

    What was read of a file does not count as this process's memory afterwards.
    """
    if not is_on_disk(values):
        own: Values = values[chosen]
        return own
    if isinstance(chosen, slice):
        found = np.array(values[chosen])
        _let_go(values)
        return found
    found = np.empty((len(chosen), *values.shape[1:]), values.dtype)
    for start in range(0, len(chosen), _SCATTERED):
        rows = slice(start, start + _SCATTERED)
        found[rows] = values[chosen[rows]]
        _let_go(values)
    return found


def _let_go(values: Values) -> None:
    """Unmap the pages of a file; the system keeps them as long as it has room."""
    if hasattr(mmap, "MADV_DONTNEED"):
        values._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def in_parts(values: Values) -> Iterator[Values]:
    """Yield the examples of an array in parts that are in memory; all at once if the array is."""
    if not is_on_disk(values):
        yield values
        return
    rows = rows_at_once(values.shape[1:], values.dtype)
    for start in range(0, len(values), rows):
        yield read(values, slice(start, start + rows))


def mapped(values: Values, function: Callable[[Values], Values]) -> Values:
    """Return `function` of an array, example by example; on disk if the array is."""
    if not is_on_disk(values):
        return function(values)
    first = function(read(values, slice(0, 1)))
    with ArrayFile(first.shape[1:], first.dtype) as file:
        for part in in_parts(values):
            file.add(function(part))
        return file.array()


def taken(values: Values, chosen: Values) -> Values:
    """Return the examples at `chosen`, int or bool [n]: a view of neighbours, else a copy.

    Either is on disk if the array is. Raises IndexError for an example that is not there.
    """
    indices = np.arange(len(values))[chosen]
    if len(indices) and (np.diff(indices) == 1).all():
        return values[indices[0] : indices[-1] + 1]
    if not is_on_disk(values):
        return values[indices]
    with ArrayFile(values.shape[1:], values.dtype) as file:
        rows = rows_at_once(values.shape[1:], values.dtype)
        for start in range(0, len(indices), rows):
            file.add(read(values, indices[start : start + rows]))
        return file.array()
