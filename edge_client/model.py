"""Keeping up with the server's model: seed, deltas and snapshots, each checked by its digest."""

from __future__ import annotations

from collections.abc import Sequence

from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.genesis import initial_weights
from featherfed.compression.manifest import Array, Manifest, weights_digest
from featherfed.compression.masks import magnitude_masks, mask_weights
from featherfed.compression.registry import parse_codec
from featherfed.compression.update import apply_update, decode_update
from featherfed.edge_client.state import Held
from featherfed.proto import federation_pb2 as pb


class DigestMismatch(Exception):
    """What was computed is not what the server holds: start over from a snapshot."""


def follow(
    manifest: Manifest, seed: int, held: Held | None, links: Sequence[pb.Link], data: bytes
) -> Held:
    """Return the version that `links` lead to from `held`; `data` holds their payloads in order.

    Raises DigestMismatch if any step does not give the weights the server says it gives, WireError
    if a payload does not decode or a link does not fit the version before it.
    """
    at = 0
    for link in links:
        payload = data[at : at + link.size]
        at += link.size
        weights = _step(manifest, seed, held, link, payload)
        held = Held(link.version, weights_digest(weights), weights)
        if held.digest != link.digest:
            raise DigestMismatch(f"version {link.version} differs from the server's")
    if at != len(data) or held is None:
        raise WireError("the model's links and payloads do not belong together")
    return held


def _step(
    manifest: Manifest, seed: int, held: Held | None, link: pb.Link, payload: bytes
) -> list[Array]:
    if link.kind == pb.Link.SEED:
        return initial_weights(manifest, seed)
    try:
        codec = parse_codec(link.codec)
    except CodecError as error:
        raise WireError(f"the server uses an unknown codec: {error}") from error
    if link.kind == pb.Link.SNAPSHOT:
        return decode_update(codec, manifest, payload)
    if held is None or link.version != held.version + 1:
        raise WireError(f"no version before the delta to version {link.version}")
    if not 0 <= link.sparsity < 1:
        raise WireError(f"a sparsity of {link.sparsity} makes no sense")
    masks = magnitude_masks(manifest, held.weights, link.sparsity)
    update = decode_update(codec, manifest, payload, masks=masks)
    return apply_update(manifest, mask_weights(held.weights, masks), update)
