"""Compute a model version from the one held, by the links that the server sends."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from featherfed.compression.arrays import Array
from featherfed.compression.chain import Codec
from featherfed.compression.context import Context
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.average import WHOLE, Average, Part, average
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, weights_digest
from featherfed.compression.exchange.masks import Masks, magnitude_masks, mask_weights
from featherfed.compression.exchange.round import FULL_STEP, Round, round_key, statistics_of
from featherfed.compression.exchange.update import apply_update, decode_update, sketched_shapes
from featherfed.compression.importance import Allocation
from featherfed.compression.key import Key
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.state import Held
from featherfed.proto import federation_pb2 as pb


class DigestMismatch(Exception):
    """The computed weights have another digest than the server's; only a snapshot helps."""


def apply_links(
    manifest: Manifest, seed: int, held: Held | None, links: Sequence[pb.Link], data: bytes
) -> Held:
    """Return the version that results from applying `links` to `held`, one after the other.

    `data` holds the links' payloads in the same order. Raises DigestMismatch if a link gives other
    weights than the server says, WireError if a payload does not decode or a link does not fit the
    version before it.
    """
    at = 0
    for link in links:
        payload = data[at : at + link.size]
        at += link.size
        weights, allocation = _apply_link(manifest, seed, held, link, payload)
        held = Held(link.version, weights_digest(weights), weights, allocation)
        if held.digest != link.digest:
            raise DigestMismatch(f"version {link.version} differs from the server's")
    if at != len(data) or held is None:
        raise WireError("the model's links and payloads do not belong together")
    return held


def _apply_link(
    manifest: Manifest, seed: int, held: Held | None, link: pb.Link, payload: bytes
) -> tuple[list[Array], Allocation | None]:
    if link.kind == pb.Link.SEED:
        return initial_weights(manifest, seed), None
    allocation = allocation_of(link, manifest)
    if link.kind == pb.Link.SNAPSHOT:
        return decode_update(_codec(link.codec), manifest, payload), allocation
    if held is None or link.version != held.version + 1:
        raise WireError(f"no version before the delta to version {link.version}")
    if not 0 <= link.sparsity < 1:
        raise WireError(f"a sparsity of {link.sparsity} makes no sense")
    masks = magnitude_masks(manifest, held.weights, link.sparsity)
    base = mask_weights(held.weights, masks)
    key = round_key(seed, link.version)
    if link.kind == pb.Link.BUNDLE:
        mean = _unbundle(manifest, payload, key, masks, held.allocation, base)
        return apply_update(manifest, base, mean.mean()), mean.allocation()
    context = Context(key.child("mean"))
    update = decode_update(_codec(link.codec), manifest, payload, masks=masks, context=context)
    return apply_update(manifest, base, update), allocation or held.allocation


def _unbundle(
    manifest: Manifest,
    payload: bytes,
    key: Key,
    masks: Masks,
    allocation: Allocation | None,
    base: Sequence[Array],
) -> Average:
    try:
        bundle = pb.Bundle.FromString(payload)
    except DecodeError as error:
        raise WireError("the server's bundle of updates is damaged") from error
    if not bundle.slots or not bundle.parts or not all(p.num_examples for p in bundle.parts):
        raise WireError("the server's bundle holds no updates or parts without examples")
    parts = [
        Part(p.slot, p.num_examples, str(_codec(p.codec or bundle.codec)), p.payload, p.clip)
        for p in bundle.parts
    ]
    if any(part.clip >= WHOLE for part in parts):
        raise WireError("the server's bundle takes over more than a whole update")
    rate = bundle.server_rate or FULL_STEP
    if rate > FULL_STEP:
        raise WireError(f"a server rate of {rate} 256ths is more than the whole mean")
    statistics = statistics_of(manifest, base)
    return average(manifest, Round(key, bundle.slots, masks, allocation, rate, statistics), parts)


def _codec(text: str) -> Codec:
    try:
        return parse_codec(text)
    except CodecError as error:
        raise WireError(f"the server uses an unknown codec: {error}") from error


def allocation_of(link: pb.Link, manifest: Manifest) -> Allocation | None:
    """Return the importance that a link carries, checked; None if it carries none."""
    if not link.HasField("allocation"):
        return None
    allocation = Allocation(link.allocation.levels, link.allocation.profile)
    allocation.check(sketched_shapes(manifest))
    return allocation
