"""Opens HDF5 files from strangers: no links out of the file, no more data than a model has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from featherfed.compression.arrays import Array
from featherfed.models.errors import ModelError

MAX_OBJECTS = 100_000
"""Most groups and datasets of a file."""
_REMEDY = "save the model anew with Keras"


@contextmanager
def open_hdf5(file: Path | IO[bytes], what: str) -> Iterator[Any]:
    """Yield the file, open for reading; raise ModelError if it, or what is read of it, is unusable.

    Nothing in it may lie elsewhere: links to other files or paths and external or virtual data are
    refused before anything is read. `what` names the file in errors.
    """
    try:
        with h5py.File(file, "r") as opened:
            _check_group(opened, what, [0])
            yield opened
    except ModelError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{what} cannot be read as HDF5 ({str(error)[:200]}); {_REMEDY}"
        ) from error


def _check_group(group: Any, what: str, seen: list[int]) -> None:
    for name in group:
        seen[0] += 1
        if seen[0] > MAX_OBJECTS:
            raise ModelError(f"{what} holds more than {MAX_OBJECTS} objects; {_REMEDY}")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ModelError(f"{what}: {group.name}/{name} is a link to elsewhere; {_REMEDY}")
        item = group[name]
        if isinstance(item, h5py.Group):
            if item == group or item.name.count("/") > 64:
                raise ModelError(f"{what}: {item.name[:100]} is nested too deeply; {_REMEDY}")
            _check_group(item, what, seen)
        elif isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
            raise ModelError(f"{what}: the data of {item.name} lie elsewhere; {_REMEDY}")


def read_tensor(group: Any, path: str, shape: tuple[int, ...], what: str) -> Array:
    """Return a dataset as float32 of `shape`, which is checked before anything is allocated."""
    item = group.get(path)
    where = f"{group.name.rstrip('/')}/{path}"
    if not isinstance(item, h5py.Dataset):
        raise ModelError(f"{what} has no {where}; {_REMEDY}")
    if tuple(item.shape or ()) != shape or item.dtype.kind != "f":
        raise ModelError(
            f"{what}: {where} is {item.dtype} of shape {list(item.shape or ())}, and the model "
            f"needs floats of shape {list(shape)}; {_REMEDY}"
        )
    values = np.asarray(item[()], np.float32)
    if not np.isfinite(values).all():
        raise ModelError(f"{what}: {where} holds values that are not finite; train the model anew")
    return values
