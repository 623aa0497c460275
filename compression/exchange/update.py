"""An update of a whole model as one payload: which tensor takes which codec, and error feedback.

Per tensor, by role and size, never by name: trainable tensors of SMALL values or more take the
codec; smaller ones and statistics travel near-lossless. What a pruning mask removes is not sent.

A sketch is so small that near-lossless would cost more than the rest: it takes all trainable
tensors. Statistics, if it sends them, travel as 8-bit floats, each by one client of the round if
all by all would be too dear. They are the new values, not the change: a variance that falls from 1
to 0.01 must be right to a part of 0.01.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.buffer import Reader, varint
from featherfed.compression.chain import MAX_MAGNITUDE, Codec, chain
from featherfed.compression.context import PLAIN, Context
from featherfed.compression.errors import OutOfRangeError
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec
from featherfed.compression.exchange.masks import Mask, Masks
from featherfed.compression.importance import Report, restrict
from featherfed.compression.sketch import Sketch
from featherfed.compression.stage import Shape
from featherfed.compression.stages.floats import Float8, Float16
from featherfed.compression.wire import seal, unseal

SMALL = 1024
"""Tensors with fewer values (biases, normalisation) are not worth a lossy codec."""

_NEAR_LOSSLESS = chain(Float16())
_CHEAP = chain(Float8())
_STATISTICS_SHARE = 8  # statistics may take one part in this many of a sketch, else they are shared
_ENVELOPE = 64  # more than magic, version, lengths and checksum take
_EXPANSION = 64  # a byte stage adds at most one part in this many to bytes it cannot compress


@dataclass(frozen=True)
class Encoded:
    """A payload, what a receiver makes of it, and what the sender keeps for its next update.

    `target` is what was to be sent, the old residual included; `residual` what the codec lost of
    it, None for a codec without feedback.
    """

    payload: bytes
    target: list[Array]
    residual: list[Array] | None
    _decode: Callable[[], list[Array]] = field(compare=False)

    @cached_property
    def decoded(self) -> list[Array]:
        """What a receiver makes of the payload."""
        return self._decode()


def encode_update(
    codec: Codec,
    manifest: Manifest,
    update: Sequence[Array],
    *,
    masks: Masks | None = None,
    residual: Sequence[Array] | None = None,
    context: Context = PLAIN,
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
    payload = _encode(codec, manifest, target, masks, context)

    def decode() -> list[Array]:
        return decode_update(codec, manifest, payload, masks=masks, context=context)

    if not codec.feedback:
        return Encoded(payload, target, None, decode)
    decoded = decode()
    triples = zip(target, decoded, _all(masks, manifest), strict=True)
    return Encoded(payload, target, [_masked(t - d, m) for t, d, m in triples], lambda: decoded)


def decode_update(
    codec: Codec,
    manifest: Manifest,
    payload: bytes,
    *,
    masks: Masks | None = None,
    context: Context = PLAIN,
) -> list[Array]:
    """Return the update in `payload`, float32 in manifest shapes; raise WireError otherwise.

    Safe on hostile bytes: nothing larger than the manifest's tensors is allocated. What
    `coverage` says was not sent is zero.
    """
    parts = _Parts(codec, manifest, masks, context)
    coarse_data, fine_data = parts.split(payload)
    values: dict[int, Array] = {}
    decoded = codec.decode(coarse_data, parts.coarse_shapes, parts.context)
    values.update(zip(parts.coarse, decoded, strict=True))
    values.update(zip(parts.fine, parts.decode_fine(fine_data), strict=True))
    return [
        _expand(values[i], mask, spec)
        for i, (spec, mask) in enumerate(zip(manifest, _all(masks, manifest), strict=True))
    ]


def coverage(codec: Codec, manifest: Manifest, context: Context = PLAIN) -> list[Mask | None]:
    """Return by tensor where an update holds a value, None where it is everywhere.

    A sketch is unbiased and counts as everywhere; of shared statistics a client sends a part.
    """
    parts = _Parts(codec, manifest, None, context)
    masks: list[Mask | None] = [None] * len(manifest)
    if parts.held or parts.slices > 1:
        sent = np.zeros(parts.fine_size, np.bool_)
        if not parts.held:
            sent[context.slot % context.slots :: parts.slices] = True
        for i, mask in zip(parts.fine, parts.cut(sent), strict=True):
            masks[i] = mask
    return masks


def read_report(
    codec: Codec,
    manifest: Manifest,
    payload: bytes,
    *,
    masks: Masks | None = None,
    context: Context = PLAIN,
) -> Report | None:
    """Return what a payload that decodes reports of importance, None if it reports nothing.

    What is left of a tensor under a mask says nothing of the whole one's rows and columns.
    """
    if not isinstance(codec, Sketch) or _kept_shapes(manifest, masks) != _kept_shapes(
        manifest, None
    ):
        return None
    parts = _Parts(codec, manifest, masks, context)
    data, _ = parts.split(payload)
    return codec.read_report(data, parts.coarse_shapes, context)


def sketched_shapes(manifest: Manifest, masks: Masks | None = None) -> list[Shape]:
    """Return the shapes that an allocation of importance speaks of."""
    shapes = _kept_shapes(manifest, masks)
    return [shapes[i] for i, s in enumerate(manifest) if s.role is Role.TRAINABLE]


def max_payload(codec: Codec, manifest: Manifest) -> int:
    """Return the most bytes an honest payload can have; more is refused before it is read."""
    parts = _Parts(codec, manifest, None, PLAIN)
    # What a mask leaves of a tensor is a vector.
    vectors = [(math.prod(shape),) for shape in parts.coarse_shapes]
    limit = max(codec.limit(parts.coarse_shapes), codec.limit(vectors))
    limit += _NEAR_LOSSLESS.limit([parts.shapes[i] for i in parts.fine])
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


def _encode(
    codec: Codec, manifest: Manifest, tensors: list[Array], masks: Masks | None, context: Context
) -> bytes:
    kept = [t if m is None else t[m] for t, m in zip(tensors, _all(masks, manifest), strict=True)]
    parts = _Parts(codec, manifest, masks, context)
    data = codec.encode([kept[i] for i in parts.coarse], parts.context)
    body = varint(len(data)) + data + parts.encode_fine([kept[i] for i in parts.fine])
    return seal(body, parts.seal_context)


class _Parts:
    """Which tensors take the codec and which are sent in a finer one, and how."""

    def __init__(
        self, codec: Codec, manifest: Manifest, masks: Masks | None, context: Context
    ) -> None:
        def is_coarse(spec: TensorSpec) -> bool:
            if codec.lossless:
                return True
            return spec.role is Role.TRAINABLE and (codec.takes_all or spec.size >= SMALL)

        self.shapes = _kept_shapes(manifest, masks)
        self.coarse = [i for i, spec in enumerate(manifest) if is_coarse(spec)]
        self.fine = [i for i in range(len(manifest)) if i not in set(self.coarse)]
        self.coarse_shapes = [self.shapes[i] for i in self.coarse]
        self.context = context
        if context.allocation and codec.takes_all:
            whole = [manifest.specs[i].shape for i in self.coarse]
            fitting = restrict(context.allocation, whole, self.coarse_shapes)
            self.context = replace(context, allocation=fitting)
        self.fine_size = sum(math.prod(self.shapes[i]) for i in self.fine)
        self.seal_context = str(codec).encode() + manifest.digest
        if codec.keyed:  # what it means depends on the round and the slot
            self.seal_context += context.digest
        self.slices = 1
        self.held = isinstance(codec, Sketch) and codec.statistics == "held"
        self._cheap = codec.takes_all
        self._base = np.zeros(self.fine_size, np.float32)
        if codec.takes_all and context.statistics is not None:
            self._base = context.statistics
        self._slot = context.slot % context.slots
        if codec.takes_all:
            room = codec.limit(self.coarse_shapes) // _STATISTICS_SHARE
            self.slices = 1 if self.fine_size <= room else context.slots

    def split(self, payload: bytes) -> tuple[bytes, bytes]:
        """Return the two parts of a payload; raise WireError if it is none."""
        reader = Reader(unseal(payload, self.seal_context))
        coarse_data = reader.take(reader.varint())
        return coarse_data, reader.take(reader.remaining)

    def encode_fine(self, tensors: list[Array]) -> bytes:
        if not self._cheap:
            return _NEAR_LOSSLESS.encode(tensors)
        if self.held or not self.fine_size:
            return b""
        values = self._base + np.concatenate([t.ravel() for t in tensors])
        return _CHEAP.encode([values[self._slot :: self.slices]])

    def decode_fine(self, data: bytes) -> list[Array]:
        if not self._cheap:
            return _NEAR_LOSSLESS.decode(data, [self.shapes[i] for i in self.fine])
        update = np.zeros(self.fine_size, np.float32)
        own = slice(self._slot, None, self.slices)
        shapes = [] if self.held or not self.fine_size else [update[own].shape]
        for values in _CHEAP.decode(data, shapes):
            update[own] = values - self._base[own]
        return self.cut(update)

    def cut(self, values: Any) -> list[Any]:
        """Return one vector over all fine tensors as these tensors."""
        shapes = [self.shapes[i] for i in self.fine]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        return (
            [x.reshape(s) for x, s in zip(np.split(values, ends[:-1]), shapes, strict=True)]
            if shapes
            else []
        )


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
