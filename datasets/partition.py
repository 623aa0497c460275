"""Splits a training set between clients."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_HELP = "use iid or dirichlet:ALPHA with ALPHA > 0, e.g. dirichlet:0.3"


class PartitionError(ValueError):
    """A split that cannot be made; the message says why and what to write."""


def partition(labels: NDArray[np.int64], num_clients: int, scheme: str, seed: int) -> list[Indices]:
    """Return for every client the int64 indices ``[n_i]`` of its examples, ascending.

    Every index occurs exactly once and every client gets at least one. ``scheme`` is "iid"
    (contiguous shards in the given order, the first ``len % num_clients`` one longer, ``seed``
    unused) or "dirichlet:ALPHA" (each class is shared out by Dirichlet(ALPHA) over the clients;
    small ALPHA is more skewed). Raises `PartitionError`.
    """
    alpha = parse_scheme(scheme)
    if not 1 <= num_clients <= len(labels):
        raise PartitionError(
            f"cannot share {len(labels)} examples between {num_clients} clients:"
            " use at least 1 client and at most one per example"
        )
    if alpha is None:
        return np.array_split(np.arange(len(labels), dtype=np.int64), num_clients)
    return _dirichlet(labels, num_clients, alpha, seed)


def parse_scheme(scheme: str) -> float | None:
    """Return ALPHA of "dirichlet:ALPHA", or None for "iid". Raises `PartitionError`."""
    if scheme == "iid":
        return None
    kind, _, text = scheme.partition(":")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if kind != "dirichlet" or not (alpha > 0 and math.isfinite(alpha)):
        raise PartitionError(f"unknown partition '{scheme}': {_HELP}")
    return alpha


def _dirichlet(
    labels: NDArray[np.int64], num_clients: int, alpha: float, seed: int
) -> list[Indices]:
    rng = np.random.default_rng(seed)
    # Beyond these bounds the gamma draws behind the Dirichlet under- or overflow.
    concentration = np.full(num_clients, min(max(alpha, 1e-3), 1e6))
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(concentration)
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for client, indices in enumerate(np.split(members, cuts)):
            owner[indices] = client
    _fill_empty(owner, num_clients)
    return [np.flatnonzero(owner == client) for client in range(num_clients)]


def _fill_empty(owner: Indices, num_clients: int) -> None:
    counts = np.bincount(owner, minlength=num_clients)
    for client in np.flatnonzero(counts == 0):
        largest = int(counts.argmax())
        owner[np.flatnonzero(owner == largest)[0]] = client
        counts[largest] -= 1
        counts[client] += 1
