"""From one model version to the next, and what a client must download to get there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featherfed.compression.chain import Codec, chain
from featherfed.compression.floats import Float32
from featherfed.compression.lossless import Zstd
from featherfed.compression.manifest import Array, Manifest, weights_digest
from featherfed.compression.masks import Masks, magnitude_masks, mask_weights
from featherfed.compression.update import apply_update, encode_update
from featherfed.proto import federation_pb2 as pb
from featherfed.server.store import Version

SNAPSHOT = chain(Float32(), Zstd())
"""Bit-exact: a client that gets a snapshot holds the same weights as one that got deltas."""


@dataclass(frozen=True)
class RoundStart:
    """What every client of a round starts from: a version's weights under that round's masks."""

    weights: list[Array]
    masks: Masks


def start_round(manifest: Manifest, weights: Sequence[Array], sparsity: float) -> RoundStart:
    """Return the masked weights; server and clients derive the same from the same version."""
    masks = magnitude_masks(manifest, weights, sparsity)
    return RoundStart(mask_weights(weights, masks), masks)


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
    residual: Sequence[Array] | None,
    sparsity: float,
) -> NextVersion:
    """Encode the mean update once, and adopt what clients will decode as the new truth."""
    encoded = encode_update(codec, manifest, mean, masks=start.masks, residual=residual)
    weights = apply_update(manifest, start.weights, encoded.decoded)
    version = Version(number, weights_digest(weights), str(codec), sparsity, encoded.payload)
    return NextVersion(version, weights, encoded.residual)


@dataclass(frozen=True)
class Route:
    """The links that lead a client to a version, and their payloads."""

    links: list[pb.Link]
    data: bytes


def seed_route(version: Version) -> Route:
    """Return the route to a version 0 that the plan's seed gives: no payload."""
    return Route([_link(pb.Link.SEED, version, 0)], b"")


def delta_route(chain_: Sequence[Version]) -> Route:
    """Return the route over these versions' deltas."""
    links = [_link(pb.Link.DELTA, v, len(v.payload)) for v in chain_]
    return Route(links, b"".join(v.payload for v in chain_))


def snapshot_route(manifest: Manifest, version: Version, weights: Sequence[Array]) -> Route:
    """Return the route that carries a version's weights themselves."""
    payload = encode_update(SNAPSHOT, manifest, weights).payload
    link = _link(pb.Link.SNAPSHOT, version, len(payload))
    link.codec = str(SNAPSHOT)
    return Route([link], payload)


def _link(kind: pb.Link.Kind, version: Version, size: int) -> pb.Link:
    return pb.Link(
        kind=kind,
        version=version.version,
        digest=version.digest,
        codec=version.codec,
        sparsity=version.sparsity,
        size=size,
    )
