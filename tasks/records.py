"""Several arrays of the same examples as one: a numpy record array [N], a field for each name.

Targets and answers of a task with several targets are such arrays, so whatever takes examples
apart, puts them together or keeps them on disk needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featherfed.tasks.arrays import Values
from featherfed.tasks.errors import TaskError


def records(arrays: Mapping[str, Values]) -> Values:
    """Return arrays [N, ...] by name as records [N], a copy.

    Raises TaskError if there is none, or if they are not of as many examples each.
    """
    if not arrays or any(not isinstance(n, str) or not n for n in arrays):
        raise TaskError(f"targets by name need names that are texts, not {list(arrays)!r:.200}")
    for name, values in arrays.items():
        if not values.ndim:
            raise TaskError(f"target {name!r} is a single value; give an array of examples")
        if values.dtype.hasobject:
            raise TaskError(f"target {name!r} holds Python objects; give numbers or texts")
    counts = {name: len(values) for name, values in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise TaskError(f"the targets hold different numbers of examples: {told}")
    dtype = np.dtype([(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
    made = np.empty(next(iter(counts.values())), dtype)
    for name, values in arrays.items():
        made[name] = values
    return made


def fields(values: Values, names: Sequence[str]) -> list[Values]:
    """Return the arrays [N, ...] of records by these names, as views; without names, the array."""
    return [values[name] for name in names] if names else [values]


def together(arrays: Sequence[Values], names: Sequence[str]) -> Values:
    """Return arrays as records by these names; without names, the only array."""
    return records(dict(zip(names, arrays, strict=True))) if names else arrays[0]
