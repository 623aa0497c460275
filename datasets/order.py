"""Which examples a client trains on, and in what order: the same on every machine and runtime."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from featherfed.datasets.dataset import DatasetError


def round_seed(seed: int, round_: int, client: str) -> int:
    """Return the seed of a client's order of examples in a round."""
    return zlib.crc32(f"{seed}/{round_}/{client}".encode())


def epoch_order(count: int, epoch: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the order of the `count` examples in an epoch (from 0), int64 [count]."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def held_out_examples(
    count: int, share: float, client: str, ordered: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the examples that a client trains on and those that it holds out, int64, ascending.

    Of `ordered` examples, such as windows of a series, the last ones are held out, as neighbours
    tell of each other; otherwise they are drawn by the client's name. At least one of each is left
    where there are two. Raises DatasetError for a single example.
    """
    if count < 2:
        raise DatasetError(
            f"{count} example is too few to train on some and evaluate on others; add data, or "
            "evaluate on the server (evaluation.dataset)"
        )
    number = min(max(1, round(count * share)), count - 1)
    order = np.arange(count)
    if not ordered:
        order = np.random.default_rng(zlib.crc32(client.encode())).permutation(count)
    return np.sort(order[:-number]), np.sort(order[-number:])
