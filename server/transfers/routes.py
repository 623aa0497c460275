"""From one model version to the next, and what a client must download to get there."""

from __future__ import annotations

from dataclasses import dataclass

from featherfed.compression.chain import chain
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.importance import Allocation
from featherfed.compression.registry import parse_codec
from featherfed.compression.stages.floats import Float32
from featherfed.compression.stages.zstd import Zstd
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.server.storage.records import Version
from featherfed.server.storage.store import Store

SNAPSHOT = chain(Float32(), Zstd())
"""Bit-exact: a client that gets a snapshot holds the same weights as one that got deltas."""


SHORTEST_DIGEST = 8
"""Bytes of a digest that tell a version well enough: what follows from it is checked in full."""


@dataclass(frozen=True)
class Route:
    """The links that lead a client to a version, and their payloads."""

    links: list[pb.Link]
    data: bytes

    @property
    def size(self) -> int:
        """Bytes of payloads and links."""
        return len(self.data) + sum(link.ByteSize() for link in self.links)


class Router:
    """Finds the way from what a client holds to the newest version."""

    def __init__(self, store: Store, manifest: Manifest, *, seeded: bool) -> None:
        """Route over the versions in `store`; `seeded`: version 0 is what the plan's seed gives."""
        self._store = store
        self._manifest = manifest
        self._seeded = seeded
        self._snapshot: tuple[int, Route] | None = None
        self._last: tuple[object, Route] | None = None

    def route(self, request: pb.FetchModelRequest, stages: frozenset[str]) -> Route:
        """Return the smallest route to the newest version that a client with `stages` can follow.

        Raises Refused for any other version.
        """
        newest = self._store.newest()
        if request.version != newest.version:
            raise Refused(pb.UNKNOWN_VERSION, f"version {newest.version} is the newest")
        have = request.have_version
        knows_one = request.HasField("have_version") and have <= newest.version
        told = request.have_digest
        known = len(told) >= SHORTEST_DIGEST and knows_one
        if known and self._store.version(have).digest.startswith(told):
            return self._shorter([], have, newest, stages)
        if not self._seeded:
            return self._whole(newest)
        return self._shorter([seed_link(self._store.version(0))], 0, newest, stages)

    def _shorter(
        self, first: list[pb.Link], have: int, newest: Version, stages: frozenset[str]
    ) -> Route:
        if have == newest.version:
            return Route(first, b"")
        wanted = (bool(first), have, newest.version, stages)
        if self._last is None or self._last[0] != wanted:  # a round's clients want one and the same
            self._last = wanted, self._shortest(first, have, newest, stages)
        return self._last[1]

    def _shortest(
        self, first: list[pb.Link], have: int, newest: Version, stages: frozenset[str]
    ) -> Route:
        steps = self._store.versions(after=have)
        whole = self._whole(newest)
        if not all(codecs_of(step) <= stages for step in steps):
            return whole
        known = self._store.version(have).allocation
        links = []
        for step in steps:
            links.append(step_link(step, known))
            known = step.allocation
        route = Route([*first, *links], b"".join(step.payload for step in steps))
        return min(route, whole, key=lambda r: r.size)

    def _whole(self, newest: Version) -> Route:
        if self._snapshot is None or self._snapshot[0] != newest.version:
            weights, _ = self._store.model(self._manifest)
            payload = encode_update(SNAPSHOT, self._manifest, weights).payload
            link = _link(pb.Link.SNAPSHOT, newest)
            link.size, link.codec = len(payload), str(SNAPSHOT)
            _describe(link, newest)
            self._snapshot = newest.version, Route([link], payload)
        return self._snapshot[1]


_KINDS = {"delta": pb.Link.DELTA, "bundle": pb.Link.BUNDLE}


def step_link(step: Version, known: Allocation | None) -> pb.Link:
    """Return the link from the version before, at which `known` is known of importance."""
    link = _link(_KINDS[step.kind], step)
    if step.kind == "delta" and step.allocation != known:
        _describe(link, step)
    return link


def seed_link(first: Version) -> pb.Link:
    """Return the link to version 0 where that is what the plan's seed gives."""
    return _link(pb.Link.SEED, first)


def codecs_of(version: Version) -> frozenset[str]:
    """Return the names of the codec stages that its payload takes."""
    if version.kind == "delta":
        return parse_codec(version.codec).needs
    bundle = pb.Bundle.FromString(version.payload)
    texts = {part.codec or bundle.codec for part in bundle.parts}
    return frozenset().union(*(parse_codec(text).needs for text in texts))


def _link(kind: pb.Link.Kind, version: Version) -> pb.Link:
    return pb.Link(
        kind=kind,
        version=version.version,
        digest=version.digest,
        codec=version.codec,
        sparsity=version.sparsity,
        size=len(version.payload),
    )


def _describe(link: pb.Link, version: Version) -> None:
    if version.allocation is not None:
        link.allocation.levels = version.allocation.levels
        link.allocation.profile = version.allocation.profile
