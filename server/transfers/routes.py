"""What a client must download to get from the version it holds to the newest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from featherfed.compression.chain import chain
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.importance import Allocation
from featherfed.compression.registry import parse_codec
from featherfed.compression.stages.floats import Float32
from featherfed.compression.stages.zstd import Zstd
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.server.storage.records import ModelVersion
from featherfed.server.storage.versions import Versions
from featherfed.server.transfers.framing import message_digest

SNAPSHOT = chain(Float32(), Zstd())
"""Bit-exact: a client that gets a snapshot holds the same weights as one that got deltas."""

_SURELY_SMALLER = 100
"""A route by so many times smaller than float32 weights is taken, without making a snapshot."""

SHORTEST_DIGEST = 8
"""Bytes of a digest that identify a version; the client checks the result's digest in full."""


@dataclass(frozen=True)
class Route:
    """The links that lead a client to a version; `data` holds their payloads in order."""

    links: list[pb.Link]
    data: bytes

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the links, which name the payloads."""
        return message_digest(pb.ModelChunk(links=self.links))

    @property
    def size(self) -> int:
        """Bytes of payloads and links."""
        return len(self.data) + sum(link.ByteSize() for link in self.links)


class Router:
    """Finds the smallest route from the version that a client holds to the newest."""

    def __init__(self, versions: Versions, manifest: Manifest, *, seeded: bool) -> None:
        """`seeded`: version 0 is what the plan's seed gives, so it costs no download."""
        self._versions = versions
        self._manifest = manifest
        self._seeded = seeded
        self._snapshots: dict[pb.Link.Kind, tuple[int, Route]] = {}
        self._last: tuple[object, Route] | None = None

    def route(self, request: pb.FetchModelRequest, stages: frozenset[str]) -> Route:
        """Return the smallest route to the newest version for a client that knows `stages`.

        Raises Refused if the request asks for another version.
        """
        newest = self._versions.newest()
        if request.version != newest.version:
            raise Refused(pb.UNKNOWN_VERSION, f"version {newest.version} is the newest")
        if self._holds_version(request, newest):
            return self._smallest([], request.have_version, newest, stages)
        if not self._seeded:
            return self._whole(newest, None)
        return self._smallest([seed_link(self._versions.get(0))], 0, newest, stages)

    def _holds_version(self, request: pb.FetchModelRequest, newest: ModelVersion) -> bool:
        """Whether the client holds a version of this run, by number and digest."""
        number, digest = request.have_version, request.have_digest
        if not request.HasField("have_version") or number > newest.version:
            return False
        if len(digest) < SHORTEST_DIGEST:
            return False
        return self._versions.get(number).digest.startswith(digest)

    def _smallest(
        self, first: list[pb.Link], have: int, newest: ModelVersion, stages: frozenset[str]
    ) -> Route:
        if have == newest.version:
            return Route(first, b"")
        wanted = (bool(first), have, newest.version, stages)
        if self._last is None or self._last[0] != wanted:  # most clients of a round want the same
            self._last = wanted, self._find_smallest(first, have, newest, stages)
        return self._last[1]

    def _find_smallest(
        self, first: list[pb.Link], have: int, newest: ModelVersion, stages: frozenset[str]
    ) -> Route:
        versions = self._versions.after(have)
        if not all(codecs_of(version) <= stages for version in versions):
            return self._whole(newest, first)
        known = self._versions.get(have).allocation
        links = []
        for version in versions:
            links.append(version_link(version, known))
            known = version.allocation
        route = Route([*first, *links], b"".join(version.payload for version in versions))
        if route.size * _SURELY_SMALLER <= 4 * self._manifest.sent.num_values:
            return route  # a snapshot takes long to make
        return min(route, self._whole(newest, first), key=lambda r: r.size)

    def _whole(self, newest: ModelVersion, first: list[pb.Link] | None) -> Route:
        """Return the route by a snapshot, without the frozen tensors if the client has them.

        `first`: the links after which it holds some version; None: it holds none.
        """
        manifest = self._manifest
        if first is None or manifest.sent is manifest:
            return self._snapshot(newest, pb.Link.SNAPSHOT)
        rest = self._snapshot(newest, pb.Link.PARTIAL)
        return Route([*first, *rest.links], rest.data)

    def _snapshot(self, newest: ModelVersion, kind: pb.Link.Kind) -> Route:
        """Return the link that holds the newest weights, whole or PARTIAL."""
        made = self._snapshots.get(kind)
        if made is None or made[0] != newest.version:
            manifest, (weights, _) = self._manifest, self._versions.model(self._manifest)
            listed = manifest.thawed
            if kind == pb.Link.PARTIAL:
                listed, weights = manifest.sent, manifest.sent_of(weights)
            payload = encode_update(SNAPSHOT, listed, weights).payload
            link = _link(kind, newest)
            link.size, link.codec = len(payload), str(SNAPSHOT)
            _add_allocation(link, newest)
            made = self._snapshots[kind] = newest.version, Route([link], payload)
        return made[1]


_KINDS = {"delta": pb.Link.DELTA, "bundle": pb.Link.BUNDLE}


def version_link(version: ModelVersion, known: Allocation | None) -> pb.Link:
    """Return the link to a version from the one before, with which `known` was the allocation."""
    link = _link(_KINDS[version.kind], version)
    if version.kind == "delta" and version.allocation != known:
        _add_allocation(link, version)
    return link


def seed_link(first: ModelVersion) -> pb.Link:
    """Return the link to version 0 where that is what the plan's seed gives."""
    return _link(pb.Link.SEED, first)


def codecs_of(version: ModelVersion) -> frozenset[str]:
    """Return the names of the codec stages that decoding a version's payload needs."""
    if version.kind == "delta":
        return parse_codec(version.codec).needs
    bundle = pb.Bundle.FromString(version.payload)
    texts = {part.codec or bundle.codec for part in bundle.parts}
    return frozenset().union(*(parse_codec(text).needs for text in texts))


def _link(kind: pb.Link.Kind, version: ModelVersion) -> pb.Link:
    return pb.Link(
        kind=kind,
        version=version.version,
        digest=version.digest,
        codec=version.codec,
        sparsity=version.sparsity,
        size=len(version.payload),
    )


def _add_allocation(link: pb.Link, version: ModelVersion) -> None:
    if version.allocation is not None:
        link.allocation.levels = version.allocation.levels
        link.allocation.profile = version.allocation.profile
