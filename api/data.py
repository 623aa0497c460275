"""What a caller gives as data, as a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from featherfed.datasets.dataset import Dataset, DatasetError, as_targets

Data = Any
"""(x, y), x alone where the input itself is the target, or a `Dataset`; x is an array, or a list or
tuple of arrays for several inputs; y an array, or a dict of arrays by name for several targets."""


def as_dataset(data: Data, where: str) -> Dataset:
    """Return the data set that `data` is; `where` names it in errors.

    Raises DatasetError if it is none.
    """
    if isinstance(data, Dataset):
        return data
    try:
        if isinstance(data, np.ndarray):
            return Dataset((data,))
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise DatasetError(
                f"{type(data).__name__} is no data set; give (x, y), x alone as an array, or a "
                "Dataset"
            )
        x, y = data
        inputs = tuple(map(np.asarray, x)) if isinstance(x, (tuple, list)) else (np.asarray(x),)
        return Dataset(inputs, as_targets(y))
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error
