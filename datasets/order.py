"""Which examples a client trains on, and in what order: the same on every machine and runtime."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

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


def held_out_by_content(
    inputs: Sequence[npt.NDArray[np.generic]], share: float, client: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the same for examples [N, ...] to which more will come.

    Each is trained on or held out by a hash of its values and the client's name, so it stays what
    it is, wherever it stands then. Raises DatasetError for a single example.
    """
    count = len(inputs[0])
    if count < 2:
        raise DatasetError(f"{count} example is too few to train on some and evaluate on others")
    places = np.array([_place(inputs, number, client) for number in range(count)])
    held_out = places < share
    if held_out.all() or not held_out.any():  # of few examples; one of each is left
        number = places.argmax() if held_out.all() else places.argmin()
        held_out[number] = not held_out[number]
    order = np.arange(count)
    return order[~held_out], order[held_out]


def _place(inputs: Sequence[npt.NDArray[np.generic]], number: int, client: str) -> float:
    """Return a number from 0 to 1 that belongs to an example and a client."""
    digest = hashlib.blake2b(client.encode(), digest_size=8)
    for values in inputs:
        digest.update(np.ascontiguousarray(values[number]).tobytes())
    return int.from_bytes(digest.digest(), "little") / 2**64
