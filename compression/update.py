"""An update of a whole model as one payload: which tensor takes which codec, and error feedback.

Per tensor, by role and size, never by name: trainable tensors of SMALL values or more take the
codec; smaller ones and statistics travel near-lossless. What a pruning mask removes is not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featherfed.compression.buffer import Reader, varint
from featherfed.compression.chain import MAX_MAGNITUDE, Codec, chain
from featherfed.compression.errors import OutOfRangeError
from featherfed.compression.floats import Float16
from featherfed.compression.manifest import Array, Manifest, Role, TensorSpec
from featherfed.compression.masks import Mask, Masks
from featherfed.compression.stage import Shape
from featherfed.compression.wire import seal, unseal

SMALL = 1024
"""Tensors with fewer values (biases, normalisation) are not worth a lossy codec."""

_NEAR_LOSSLESS = chain(Float16())
_ENVELOPE = 64  # more than magic, version, lengths and checksum take
_EXPANSION = 64  # a byte stage adds at most one part in this many to bytes it cannot compress


@dataclass(frozen=True)
class Encoded:
    """A payload, what a receiver makes of it, and what the sender keeps for its next update.

    `target` is what was to be sent, the old residual included; `residual` what the codec lost of
    it, None for a codec without feedback.
    """

    payload: bytes
    decoded: list[Array]
    target: list[Array]
    residual: list[Array] | None


def encode_update(
    codec: Codec,
    manifest: Manifest,
    update: Sequence[Array],
    *,
    masks: Masks | None = None,
    residual: Sequence[Array] | None = None,
) -> Encoded:
    """Encode `update` (float32, manifest shapes) plus the `residual` of the last one.

    Error feedback (Seide et al. 2014, Karimireddy et al. 2019) is used by codecs that ask for it;
    others return no residual. Raises CodecError for values beyond MAX_MAGNITUDE, ValueError for
    tensors that do not fit the manifest.
    """
    manifest.check(update)
    target = list(update)
    if codec.feedback and residual is not None:
        target = [u + r for u, r in zip(update, residual, strict=True)]
    payload = _encode(codec, manifest, target, masks)
    decoded = decode_update(codec, manifest, payload, masks=masks)
    lost = None
    if codec.feedback:
        triples = zip(target, decoded, _all(masks, manifest), strict=True)
        lost = [_masked(t - d, m) for t, d, m in triples]
    return Encoded(payload, decoded, target, lost)


def decode_update(
    codec: Codec, manifest: Manifest, payload: bytes, *, masks: Masks | None = None
) -> list[Array]:
    """Return the update in `payload`, float32 in manifest shapes; raise WireError otherwise.

    Safe on hostile bytes: nothing larger than the manifest's tensors is allocated.
    """
    reader = Reader(unseal(payload, _context(codec, manifest)))
    coarse, fine = _split(codec, manifest)
    coarse_data = reader.take(reader.varint())
    fine_data = reader.take(reader.remaining)
    shapes = _kept_shapes(manifest, masks)
    values: dict[int, Array] = {}
    for part, indices, data in ((codec, coarse, coarse_data), (_NEAR_LOSSLESS, fine, fine_data)):
        values.update(zip(indices, part.decode(data, [shapes[i] for i in indices]), strict=True))
    return [
        _expand(values[i], mask, spec)
        for i, (spec, mask) in enumerate(zip(manifest, _all(masks, manifest), strict=True))
    ]


def max_payload(codec: Codec, manifest: Manifest) -> int:
    """Return the most bytes an honest payload can have; more is refused before it is read."""
    coarse, fine = _split(codec, manifest)
    shapes = [spec.shape for spec in manifest]
    limit = codec.limit([shapes[i] for i in coarse])
    limit += _NEAR_LOSSLESS.limit([shapes[i] for i in fine])
    return limit + limit // _EXPANSION + _ENVELOPE


def subtract(weights: Sequence[Array], base: Sequence[Array]) -> list[Array]:
    """Return weights - base, tensor by tensor."""
    return [w - b for w, b in zip(weights, base, strict=True)]


def apply_update(
    manifest: Manifest,
    base: Sequence[Array],
    update: Sequence[Array],
    *,
    limit: float = MAX_MAGNITUDE,
) -> list[Array]:
    """Return base + update; server and clients call this alone, so they stay bit-identical.

    Raises OutOfRangeError for weights beyond `limit`. A variance never falls below zero.
    """
    with np.errstate(over="ignore"):
        weights = [b + u for b, u in zip(base, update, strict=True)]
    for i, spec in enumerate(manifest):
        if not (np.abs(weights[i]) <= limit).all():
            raise OutOfRangeError(f"update takes tensor {spec.name!r} beyond {limit:g}")
        if spec.role is Role.NONNEGATIVE:
            weights[i] = np.where(weights[i] > 0, weights[i], np.float32(0))  # -0.0 too, everywhere
    return weights


def _encode(codec: Codec, manifest: Manifest, tensors: list[Array], masks: Masks | None) -> bytes:
    kept = [t if m is None else t[m] for t, m in zip(tensors, _all(masks, manifest), strict=True)]
    coarse, fine = _split(codec, manifest)
    data = codec.encode([kept[i] for i in coarse])
    body = varint(len(data)) + data + _NEAR_LOSSLESS.encode([kept[i] for i in fine])
    return seal(body, _context(codec, manifest))


def _split(codec: Codec, manifest: Manifest) -> tuple[list[int], list[int]]:
    """Return the indices of the tensors that take the codec, and of those that do not."""

    def is_coarse(spec: TensorSpec) -> bool:
        return codec.lossless or (spec.role is Role.TRAINABLE and spec.size >= SMALL)

    coarse = [i for i, spec in enumerate(manifest) if is_coarse(spec)]
    return coarse, [i for i in range(len(manifest)) if i not in set(coarse)]


def _context(codec: Codec, manifest: Manifest) -> bytes:
    return str(codec).encode() + manifest.digest


def _all(masks: Masks | None, manifest: Manifest) -> Masks:
    return [None] * len(manifest) if masks is None else masks


def _kept_shapes(manifest: Manifest, masks: Masks | None) -> list[Shape]:
    return [
        spec.shape if mask is None else (int(mask.sum()),)
        for spec, mask in zip(manifest, _all(masks, manifest), strict=True)
    ]


def _masked(tensor: Array, mask: Mask | None) -> Array:
    return tensor if mask is None else np.where(mask, tensor, np.float32(0))


def _expand(values: Array, mask: Mask | None, spec: TensorSpec) -> Array:
    if mask is None:
        return values
    out = np.zeros(spec.shape, np.float32)
    out[mask] = values
    return out
