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
from featherfed.server.errors import Refused
from featherfed.server.store import Store, Version

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


class Router:
    """Finds the way from what a client holds to the newest version."""

    def __init__(self, store: Store, manifest: Manifest, *, seeded: bool) -> None:
        """Route over the versions in `store`; `seeded`: version 0 is what the plan's seed gives."""
        self._store = store
        self._manifest = manifest
        self._seeded = seeded
        self._snapshot: tuple[int, Route] | None = None

    def route(self, request: pb.FetchModelRequest) -> Route:
        """Return the smallest route to the newest version; raise Refused for any other version."""
        newest = self._store.newest()
        if request.version != newest.version:
            raise Refused(pb.UNKNOWN_VERSION, f"version {newest.version} is the newest")
        have = request.have_version
        knows_one = request.HasField("have_version") and have <= newest.version
        if knows_one and self._store.version(have).digest == request.have_digest:
            return self._shorter(_deltas(self._store.versions(after=have)), newest)
        if not self._seeded:
            return self._whole(newest)
        seed = _link(pb.Link.SEED, self._store.version(0), 0)
        deltas = _deltas(self._store.versions(after=0))
        return self._shorter(Route([seed, *deltas.links], deltas.data), newest)

    def _shorter(self, route: Route, newest: Version) -> Route:
        if not route.data:
            return route
        return min(route, self._whole(newest), key=lambda r: len(r.data))

    def _whole(self, newest: Version) -> Route:
        if self._snapshot is None or self._snapshot[0] != newest.version:
            weights, _ = self._store.model(self._manifest)
            payload = encode_update(SNAPSHOT, self._manifest, weights).payload
            link = _link(pb.Link.SNAPSHOT, newest, len(payload))
            link.codec = str(SNAPSHOT)
            self._snapshot = newest.version, Route([link], payload)
        return self._snapshot[1]


def _deltas(versions: Sequence[Version]) -> Route:
    links = [_link(pb.Link.DELTA, v, len(v.payload)) for v in versions]
    return Route(links, b"".join(v.payload for v in versions))


def _link(kind: pb.Link.Kind, version: Version, size: int) -> pb.Link:
    return pb.Link(
        kind=kind,
        version=version.version,
        digest=version.digest,
        codec=version.codec,
        sparsity=version.sparsity,
        size=size,
    )
