"""Norm clipping: an update that is far larger than the round's others counts only in part.

Bounding norms keeps a scaled-up update from replacing the model (Sun et al. 2019, "Can You Really
Backdoor Federated Learning?"); a quantile of the round's own norms is a bound that nobody has to
guess (Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning with Adaptive
Clipping"). It means something while most updates are honest: of one or two, nobody can say which
is the outlier, and they count as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.exchange.average import FULL_SHARE, WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest, Role
from featherfed.server.storage.records import Facts, Norms, Update

ENOUGH = 3
"""Fewer updates have no majority that an outlier could be far from."""


def measure(
    codec: Codec, manifest: Manifest, update: Sequence[Array], weights: Sequence[Array]
) -> Norms:
    """Return the norms of a decoded `update` that led to `weights`, both float32.

    A sketch sends few coordinates, each scaled up: its norm is brought back to about the update's
    own, so that clients that send something else compare. State that is not trained is judged by
    its new values, since how far those move differs from client to client.
    """
    trained = [spec.role is Role.TRAINABLE for spec in manifest]
    squares = [_square(tensor) for tensor in update]
    trainable = math.sqrt(sum(s for s, t in zip(squares, trained, strict=True) if t))
    trainable *= math.sqrt(codec.traits.sampling_rate)
    state = sum(_square(w) for w, t in zip(weights, trained, strict=True) if not t)
    return Norms(math.sqrt(sum(squares)), trainable, math.sqrt(state))


def _square(tensor: Array) -> float:
    flat = tensor.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))  # without a copy in float64


def share(norm: float, limit: float) -> int:
    """Return how much of an update of `norm` stays within `limit`, in 65536ths rounded down."""
    return (
        FULL_SHARE
        if norm <= limit
        else min(FULL_SHARE - 1, math.floor(FULL_SHARE * (limit / norm)))
    )


def limit_of(norms: Sequence[float], clip: float, quantile: float) -> float:
    """Return `clip` times the quantile of the norms that are not zero; infinity if they are few."""
    moved = [norm for norm in norms if norm > 0]
    if not clip or len(moved) < ENOUGH:
        return math.inf
    # One of the norms and not something between two, which an attacker's could pull up.
    return clip * float(np.quantile(moved, quantile, method="inverted_cdf"))


@dataclass(frozen=True)
class Ruling:
    """How much of each update of a round counts: shares by client in 65536ths, 0 is left out.

    `weights`: what it weighs in the mean, `total` what all of them do. `outliers`: whoever is
    clipped or left out, and why. A client without a share counts whole.
    """

    weights: Mapping[str, int]
    total: int
    facts: Facts
    shares: Mapping[str, int] = field(default_factory=dict)
    outliers: tuple[tuple[str, str], ...] = ()

    def part(self, update: Update) -> WeightedUpdate | None:
        """Return a journaled update as the mean takes it, None if it is left out."""
        assert update.payload is not None, "payloads are kept until the round is aggregated"
        taken = self.shares.get(update.client, FULL_SHARE)
        if not taken:
            return None
        weight = self.weights[update.client]
        return WeightedUpdate(update.slot, weight, update.codec, update.payload, taken % FULL_SHARE)


def rule_on_norms(
    weights: Mapping[str, int], norms: Mapping[str, Norms], clip: float, quantile: float
) -> Ruling:
    """Return what clipping to `clip` times the `quantile` of the round's norms leaves of each."""
    limits = [
        limit_of([own.trainable for own in norms.values()], clip, quantile),
        limit_of([own.state for own in norms.values()], clip, quantile),
    ]
    shares: dict[str, int] = {}
    outliers = []
    for client, own in norms.items():
        sides = (("norm", own.trainable, limits[0]), ("norm of its state", own.state, limits[1]))
        name, norm, limit = min(sides, key=lambda side: share(side[1], side[2]))
        shares[client] = share(norm, limit)
        if shares[client] < FULL_SHARE:
            counts = (
                f"{shares[client] / FULL_SHARE:.2%} of it counts" if shares[client] else "left out"
            )
            outliers.append((client, f"{name} {norm:.4g}, at most {limit:.4g} allowed; {counts}"))
    left_out = tuple(client for client in shares if not shares[client])
    total = sum(weight for client, weight in weights.items() if client not in left_out)
    told = limits[0] if math.isfinite(limits[0]) else None
    facts = Facts(told, clipped=len(outliers) - len(left_out), left_out=left_out)
    return Ruling(weights, total, facts, shares, tuple(outliers))
