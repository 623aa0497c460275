"""From a round's aggregate to the next model version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.context import Context
from featherfed.compression.exchange.manifest import Manifest, weights_digest
from featherfed.compression.exchange.round import RoundStart
from featherfed.compression.exchange.update import apply_update, encode_update
from featherfed.compression.importance import Allocation
from featherfed.proto import federation_pb2 as pb
from featherfed.server.storage.records import Version


@dataclass(frozen=True)
class NextVersion:
    """A new version, its weights, and what the downlink codec lost of it."""

    version: Version
    weights: list[Array]
    residual: list[Array] | None


def next_version(
    codec: Codec,
    manifest: Manifest,
    number: int,
    start: RoundStart,
    mean: Sequence[Array],
    allocation: Allocation | None,
    bundle: pb.Bundle | None,
    context: Context,
    residual: Sequence[Array] | None,
    sparsity: float,
) -> NextVersion:
    """Adopt what clients will decode as the new truth: the `bundle`, or the mean in `codec`.

    The bundle loses nothing and is taken if it is no larger. What the codec loses is in the new
    residual, which goes into the next mean that is encoded.
    """
    encoded = encode_update(
        codec, manifest, mean, masks=start.masks, residual=residual, context=context
    )
    payload = b"" if bundle is None else bundle.SerializeToString(deterministic=True)
    forward = bundle is not None and len(payload) <= len(encoded.payload)
    update = mean if forward else encoded.decoded
    weights = apply_update(manifest, start.weights, update)
    version = Version(
        number,
        weights_digest(weights),
        "bundle" if forward else "delta",
        "" if forward else str(codec),
        sparsity,
        payload if forward else encoded.payload,
        allocation,
    )
    kept = list(residual) if residual is not None else None
    return NextVersion(version, weights, kept if forward else encoded.residual)
