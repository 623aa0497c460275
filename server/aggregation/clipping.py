"""Norm clipping: an update that is far larger than the round's others counts only in part.

Bounding norms keeps a scaled-up update from replacing the model (Sun et al. 2019, "Can You Really
Backdoor Federated Learning?"); a quantile of the round's own norms is a bound that nobody has to
guess (Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning with Adaptive
Clipping"). It means something while most updates are honest: of one or two, nobody can say which
is the outlier. What limits those is the model that they start from and the smaller of the two:
training moves weights by about their own size, rarely by ten times that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.exchange.average import FULL_SHARE
from featherfed.compression.exchange.manifest import Manifest, Role
from featherfed.compression.sparse import Tensor, energy
from featherfed.server.aggregation.weighting import Weighting
from featherfed.server.storage.records import AggregationRecord, UpdateNorms

MIN_UPDATES = 3
"""With fewer updates there is no majority to tell an outlier by."""
_STATE_GROWTH = 1000  # training at a high rate from a normalisation's first statistics


def update_norms(
    codec: Codec, manifest: Manifest, update: Sequence[Tensor], weights: Sequence[Array]
) -> UpdateNorms:
    """Return the norms of a decoded `update` and of the `weights` it leads to, both float32.

    Of sparse tensors, which are all trained, the `weights` do not count.

    A sketch sends few coordinates, each scaled up: its norm is brought back to about the update's
    own, so that clients that send something else compare. State that is not trained is judged by
    its new values, since how far those move differs from client to client.
    """
    trained = [spec.role is Role.TRAINABLE for spec in manifest]
    squares = [energy(tensor) for tensor in update]
    trainable = math.sqrt(sum(s for s, t in zip(squares, trained, strict=True) if t))
    trainable *= math.sqrt(codec.traits.sampling_rate)
    state = sum(energy(w) for w, t in zip(weights, trained, strict=True) if not t)
    return UpdateNorms(math.sqrt(sum(squares)), trainable, math.sqrt(state))


def norms_of_start(manifest: Manifest, weights: Sequence[Array]) -> UpdateNorms:
    """Return the norms of the weights that a round starts from, as if an update had made them.

    A part of the model that is zero counts as if all its values were one.
    """
    trained = [spec.role is Role.TRAINABLE for spec in manifest]
    parts = [
        [weight for weight, own in zip(weights, trained, strict=True) if own is side]
        for side in (True, False)
    ]
    trainable, state = (
        sum(map(energy, part)) or float(sum(weight.size for weight in part)) for part in parts
    )
    return UpdateNorms(math.sqrt(trainable + state), math.sqrt(trainable), math.sqrt(state))


def clip_share(norm: float, limit: float) -> int:
    """Return the share of an update that clipping its L2 norm to `limit` leaves.

    In units of 1 / FULL_SHARE, rounded down; 0 leaves nothing of it.
    """
    if norm <= limit:
        return FULL_SHARE
    return min(FULL_SHARE - 1, math.floor(FULL_SHARE * (limit / norm)))


def norm_limit(
    norms: Sequence[float], clip: float, quantile: float, least: float, most: float
) -> float:
    """Return `clip` times the quantile of the norms that are not zero, infinity if `clip` is 0.

    Of two it is `clip` times the smaller, but at least `least`, so that a tiny update shrinks no
    other, and at most `most`; of one it is `most`.
    """
    moved = [norm for norm in norms if norm > 0]
    if not clip or not moved:
        return math.inf
    if len(moved) < MIN_UPDATES:
        return most if len(moved) == 1 else min(max(clip * min(moved), least), most)
    # One of the norms and no interpolation of two: an attacker's norm could raise that.
    return clip * float(np.quantile(moved, quantile, method="inverted_cdf"))


def clip_to_quantile(
    weights: Mapping[str, int],
    norms: Mapping[str, UpdateNorms],
    clip: float,
    quantile: float,
    start: UpdateNorms,
) -> Weighting:
    """Clip each update to `clip` times the `quantile` of the round's norms.

    `weights` and `norms` by client; `start`: of what the round starts from. Trainable tensors and
    other state have limits of their own; an update keeps the smaller of the two shares.
    """
    limits = [
        norm_limit(
            [own.trainable for own in norms.values()], clip, quantile,
            least=start.trainable, most=clip * start.trainable,
        ),
        norm_limit(
            [own.state for own in norms.values()], clip, quantile,
            least=start.state, most=_STATE_GROWTH * clip * start.state,
        ),
    ]  # fmt: skip
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
