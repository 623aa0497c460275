"""Norm clipping: an update that is far larger than the round's others counts only in part.

Bounding norms keeps a scaled-up update from replacing the model (Sun et al. 2019, "Can You Really
Backdoor Federated Learning?"); a quantile of the round's own norms is a bound that nobody has to
guess (Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning with Adaptive
Clipping"). It means something while most updates are honest: of one or two, nobody can say which
is the outlier, so rounds of one or two are not clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.exchange.average import FULL_SHARE
from featherfed.compression.exchange.manifest import Manifest, Role
from featherfed.server.aggregation.weighting import Weighting
from featherfed.server.storage.records import AggregationRecord, UpdateNorms

MIN_UPDATES = 3
"""With fewer updates there is no majority to tell an outlier by, and none is clipped."""


def update_norms(
    codec: Codec, manifest: Manifest, update: Sequence[Array], weights: Sequence[Array]
) -> UpdateNorms:
    """Return the norms of a decoded `update` and of the `weights` it leads to, both float32.

    A sketch sends few coordinates, each scaled up: its norm is brought back to about the update's
    own, so that clients that send something else compare. State that is not trained is judged by
    its new values, since how far those move differs from client to client.
    """
    trained = [spec.role is Role.TRAINABLE for spec in manifest]
    squares = [_square(tensor) for tensor in update]
    trainable = math.sqrt(sum(s for s, t in zip(squares, trained, strict=True) if t))
    trainable *= math.sqrt(codec.traits.sampling_rate)
    state = sum(_square(w) for w, t in zip(weights, trained, strict=True) if not t)
    return UpdateNorms(math.sqrt(sum(squares)), trainable, math.sqrt(state))


def _square(tensor: Array) -> float:
    flat = tensor.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))  # without a copy in float64


def clip_share(norm: float, limit: float) -> int:
    """Return the share of an update that clipping its L2 norm to `limit` leaves.

    In units of 1 / FULL_SHARE, rounded down; 0 leaves nothing of it.
    """
    if norm <= limit:
        return FULL_SHARE
    return min(FULL_SHARE - 1, math.floor(FULL_SHARE * (limit / norm)))


def norm_limit(norms: Sequence[float], clip: float, quantile: float) -> float:
    """Return `clip` times the quantile of the norms that are not zero, infinity for no limit.

    There is no limit if `clip` is 0 or fewer than MIN_UPDATES norms are not zero.
    """
    moved = [norm for norm in norms if norm > 0]
    if not clip or len(moved) < MIN_UPDATES:
        return math.inf
    # One of the norms and no interpolation of two: an attacker's norm could raise that.
    return clip * float(np.quantile(moved, quantile, method="inverted_cdf"))


def clip_to_quantile(
    weights: Mapping[str, int], norms: Mapping[str, UpdateNorms], clip: float, quantile: float
) -> Weighting:
    """Clip each update to `clip` times the `quantile` of the round's norms.

    `weights` and `norms` by client. Trainable tensors and other state have limits of their own;
    an update keeps the smaller of the two shares.
    """
    limits = [
        norm_limit([own.trainable for own in norms.values()], clip, quantile),
        norm_limit([own.state for own in norms.values()], clip, quantile),
    ]
    shares: dict[str, int] = {}
    outliers = []
    for client, own in norms.items():
        sides = (("norm", own.trainable, limits[0]), ("norm of its state", own.state, limits[1]))
        name, norm, limit = min(sides, key=lambda side: clip_share(side[1], side[2]))
        kept = shares[client] = clip_share(norm, limit)
        if kept < FULL_SHARE:
            counts = f"{kept / FULL_SHARE:.2%} of it counts" if kept else "left out"
            outliers.append((client, f"{name} {norm:.4g}, at most {limit:.4g} allowed; {counts}"))
    left_out = tuple(client for client in shares if not shares[client])
    total = sum(weight for client, weight in weights.items() if client not in left_out)
    record = AggregationRecord(
        clip=limits[0] if math.isfinite(limits[0]) else None,
        clipped=len(outliers) - len(left_out),
        left_out=left_out,
    )
    return Weighting(weights, total, record, shares, tuple(outliers))
