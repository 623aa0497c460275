"""From a round's aggregate to the next model version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.exchange.average import average
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.compression.exchange.noise import MeanNoise
from featherfed.compression.exchange.round import RoundContext, RoundStart
from featherfed.compression.exchange.update import apply_update, encode_update
from featherfed.compression.importance import Allocation
from featherfed.compression.registry import parse_codec
from featherfed.server.aggregation.bundle import RoundBundle, bundled_updates
from featherfed.server.storage.records import ModelVersion


class RoundAggregate(NamedTuple):
    """What aggregation makes of a round's updates.

    `mean`: float32, of the tensors that rounds change. `allocation`: the importance of coordinates
    that is known now. `bundle`: the updates as they were sent, None if they are not to be
    forwarded; its mean, of coarse weights, may be another one. `noise`: what codecs left in `mean`,
    None if that cannot be told.
    """

    mean: Sequence[Array]
    allocation: Allocation | None
    bundle: RoundBundle | None
    noise: MeanNoise | None = None


class NextVersion(NamedTuple):
    """A new version, its weights, and the residual that the downlink codec lost (None: nothing).

    `weights` are those of the whole model, `residual` is of the tensors that rounds change.
    """

    version: ModelVersion
    weights: list[Array]
    residual: list[Array] | None


UNCHANGED = parse_codec("float32 | zstd")
"""Codec of the delta of zeros that leads to the version of a discarded round."""


def unchanged_version(
    number: int,
    start: RoundStart,
    sparsity: float,
    allocation: Allocation | None,
    residual: Sequence[Array] | None,
) -> NextVersion:
    """Return the weights that the round started from as version `number`, by a delta of zeros.

    `allocation` and `residual` stay what they were before the round.
    """
    zeros = [np.zeros(spec.shape, np.float32) for spec in start.manifest]
    payload = encode_update(UNCHANGED, start.manifest, zeros, masks=start.masks).payload
    weights = start.complete(apply_update(start.manifest, start.weights, zeros))
    digest = weights_digest(weights)
    version = ModelVersion(number, digest, "delta", str(UNCHANGED), sparsity, payload, allocation)
    return NextVersion(version, weights, _kept(residual))


def next_version(
    number: int,
    start: RoundStart,
    sparsity: float,
    aggregate: RoundAggregate,
    codec: Codec,
    context: RoundContext,
    residual: Sequence[Array] | None,
) -> NextVersion:
    """Adopt what clients will decode as version `number`: the bundle, or the mean in `codec`.

    The bundle loses nothing and is taken if it is no larger; the server then averages it as clients
    do, unless that would give the same mean. `residual`: what the codec lost in earlier rounds; it
    is encoded with the mean, and what is lost now is the new residual.
    """
    encoded = encode_update(
        codec, start.manifest, aggregate.mean,
        masks=start.masks, residual=residual, context=context.for_mean,
    )  # fmt: skip
    bundle = aggregate.bundle
    if bundle is not None and bundle.message.ByteSize() <= len(encoded.payload):
        if bundle.same_mean:
            update = list(aggregate.mean)
        else:
            update = average(start.manifest, context, bundled_updates(bundle.message)).mean()
        kind, text, payload = "bundle", "", bundle.message.SerializeToString(deterministic=True)
        left = _kept(residual)
    else:
        kind, text, payload = "delta", str(codec), encoded.payload
        update = encoded.decoded
        left = encoded.residual if codec.traits.error_feedback else _kept(residual)
    weights = start.complete(apply_update(start.manifest, start.weights, update))
    version = ModelVersion(
        number, weights_digest(weights), kind, text, sparsity, payload, aggregate.allocation
    )
    return NextVersion(version, weights, left)


def _kept(residual: Sequence[Array] | None) -> list[Array] | None:
    return None if residual is None else list(residual)
