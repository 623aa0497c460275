"""The order in which a client sees its examples: the same on every machine and runtime."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt


def round_seed(seed: int, round_: int, client: str) -> int:
    """Return the seed of a client's order of examples in a round."""
    return zlib.crc32(f"{seed}/{round_}/{client}".encode())


def epoch_order(count: int, epoch: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the order of the `count` examples in an epoch (from 0), int64 [count]."""
    return np.random.default_rng([seed, epoch]).permutation(count)
