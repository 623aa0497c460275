"""Compute a model version from the held one and the links that the server sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.average import FULL_SHARE, WeightedUpdate, average
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, weights_digest
from featherfed.compression.exchange.round import FULL_RATE, MAX_RATE, start_round
from featherfed.compression.exchange.update import apply_update, decode_update, sketched_shapes
from featherfed.compression.importance import Allocation
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.answers import ComputingTime, check_bundle
from featherfed.edge_client.errors import UNKNOWN_HERE
from featherfed.edge_client.state import HeldModel
from featherfed.proto import federation_pb2 as pb


class DigestMismatch(Exception):
    """The computed weights have another digest than the server's: a snapshot is needed."""


def apply_links(
    manifest: Manifest,
    seed: int,
    held: HeldModel | None,
    links: Sequence[pb.Link],
    data: bytes,
    computing: ComputingTime | None = None,
) -> HeldModel:
    """Return the version that results from applying `links` to `held`, one after the other.

    `data` holds the links' payloads in the same order. `computing`: what the time is measured by,
    None for a server that is trusted. Raises DigestMismatch if a link gives other weights than the
    server says, WireError if a payload does not decode, a link does not fit the version before it,
    or all takes too long.
    """
    at = 0
    check = computing.check if computing else lambda: None
    for link in links:
        check()
        payload = data[at : at + link.size]
        at += link.size
        weights, allocation = _apply_link(manifest, seed, held, link, payload, check)
        held = HeldModel(link.version, weights_digest(weights), weights, allocation)
        if held.digest != link.digest:
            raise DigestMismatch(f"version {link.version} differs from the server's")
    if at != len(data) or held is None:
        raise WireError("the model's links and payloads do not belong together")
    return held


def _apply_link(
    manifest: Manifest,
    seed: int,
    held: HeldModel | None,
    link: pb.Link,
    payload: bytes,
    check: Callable[[], None],
) -> tuple[list[Array], Allocation | None]:
    if link.kind == pb.Link.SEED:
        return initial_weights(manifest, seed), None
    allocation = allocation_of(link, manifest)
    if link.kind == pb.Link.SNAPSHOT:
        return decode_update(_codec(link.codec), manifest.thawed, payload), allocation
    if link.kind == pb.Link.PARTIAL:
        if held is None:
            raise WireError(f"no version before the partial snapshot of version {link.version}")
        sent = decode_update(_codec(link.codec), manifest.sent, payload)
        return manifest.with_sent(held.weights, sent), allocation
    if held is None or link.version != held.version + 1:
        raise WireError(f"no version before the delta to version {link.version}")
    if not 0 <= link.sparsity < 1:
        raise WireError(f"a sparsity of {link.sparsity} makes no sense")
    start = start_round(manifest, held.weights, link.sparsity)
    if link.kind == pb.Link.BUNDLE:
        bundle = _parse_bundle(payload)
        rate = bundle.server_rate or FULL_RATE
        round_ = start.context(seed, link.version, bundle.slots, held.allocation, rate)
        mean = average(start.manifest, round_, _updates(bundle), check)
        weights = apply_update(start.manifest, start.weights, mean.mean())
        return start.complete(weights), mean.allocation()
    context = start.context(seed, link.version, 1, held.allocation).for_mean
    codec = _codec(link.codec)
    update = decode_update(codec, start.manifest, payload, masks=start.masks, context=context)
    weights = apply_update(start.manifest, start.weights, update)
    return start.complete(weights), allocation or held.allocation


def _parse_bundle(payload: bytes) -> pb.Bundle:
    """Return a bundle whose counts and rate are in range; raise WireError otherwise."""
    check_bundle(payload)
    try:
        bundle = pb.Bundle.FromString(payload)
    except DecodeError as error:
        raise WireError("the server's bundle of updates is damaged") from error
    if not bundle.slots or not bundle.parts or not all(p.num_examples for p in bundle.parts):
        raise WireError("the server's bundle holds no updates or parts without examples")
    if any(part.clip >= FULL_SHARE for part in bundle.parts):
        raise WireError("the server's bundle takes over more than a whole update")
    if bundle.server_rate > MAX_RATE:
        raise WireError(f"a server rate of {bundle.server_rate} 256ths is beyond {MAX_RATE}")
    return bundle


def _updates(bundle: pb.Bundle) -> list[WeightedUpdate]:
    """Return a bundle's updates in its order; raise WireError for a codec that is unknown here."""
    return [
        WeightedUpdate(
            part.slot,
            part.num_examples,
            str(_codec(part.codec or bundle.codec)),
            part.payload,
            part.clip,
        )
        for part in bundle.parts
    ]


def _codec(text: str) -> Codec:
    try:
        return parse_codec(text)
    except CodecError as error:
        raise WireError(f"the server uses a codec {UNKNOWN_HERE} ({error})") from error


def allocation_of(link: pb.Link, manifest: Manifest) -> Allocation | None:
    """Return the importance that a link carries, checked; None if it carries none."""
    if not link.HasField("allocation"):
        return None
    allocation = Allocation(link.allocation.levels, link.allocation.profile)
    allocation.check(sketched_shapes(manifest))
    return allocation
