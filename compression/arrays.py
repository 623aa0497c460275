"""The array type that codecs take and models are exchanged in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
"""A float32 tensor, the only dtype that is exchanged."""


def make_read_only(tensors: Iterable[Array]) -> None:
    """Forbid writing to tensors that several parts share."""
    for tensor in tensors:
        if isinstance(tensor, np.ndarray):  # numpy's arithmetic makes scalars of 0 dimensions
            tensor.flags.writeable = False
