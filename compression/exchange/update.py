"""An update of a whole model as one payload: which tensor takes which codec, and error feedback.

Per tensor, by role and size, never by name: trainable tensors of SMALL values or more take the
codec; smaller ones and statistics (tensors that are not trained) travel near-lossless beside it.
The values that a pruning mask removes are not sent.

A sketch is so small that near-lossless tensors would cost more than the rest: it takes all
trainable tensors, and statistics travel as new values in 8 bits, if at all. If even these cost too
much, each value is sent by one client of the round only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.buffer import Reader, varint
from featherfed.compression.codec import MAX_MAGNITUDE, Codec
from featherfed.compression.context import NO_CONTEXT, Context
from featherfed.compression.errors import OutOfRangeError
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec
from featherfed.compression.exchange.masks import Mask, Masks
from featherfed.compression.exchange.other_tensors import (
    NearLossless,
    OtherTensors,
    StatisticValues,
)
from featherfed.compression.importance import Report, restrict_to_masked
from featherfed.compression.stage import Shape
from featherfed.compression.wire import seal, unseal

SMALL = 1024
"""Tensors with fewer values (biases, normalisation) are not worth a lossy codec."""

_STATISTICS_SHARE = 8  # every client sends all statistics if a sketch takes this many times more
_ENVELOPE = 64  # more bytes than magic, version, lengths and checksum take
_EXPANSION = 64  # a byte stage adds at most 1 / 64 to bytes that it cannot compress

T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """A payload, what a receiver decodes it to, and what the sender keeps for its next update.

    `target` is the update with the old residual added; `residual` is `target` minus `decoded`, zero
    at masked values, or None for a codec without error feedback.
    """

    payload: bytes
    target: list[Array]
    residual: list[Array] | None
    _decode: Callable[[], list[Array]] = field(compare=False)

    @cached_property
    def decoded(self) -> list[Array]:
        """What a receiver decodes the payload to."""
        return self._decode()


def encode_update(
    codec: Codec,
    manifest: Manifest,
    update: Sequence[Array],
    *,
    masks: Masks | None = None,
    residual: Sequence[Array] | None = None,
    context: Context = NO_CONTEXT,
) -> Encoded:
    """Encode `update` (float32, manifest shapes) plus the `residual` of the last one.

    The residual (error feedback, Seide et al. 2014, Karimireddy et al. 2019) is ignored by codecs
    without that trait. Raises CodecError for values beyond MAX_MAGNITUDE, ValueError for tensors
    that do not fit the manifest.
    """
    manifest.check(update)
    target = list(update)
    if codec.traits.error_feedback and residual is not None:
        target = [u + r for u, r in zip(update, residual, strict=True)]
    kept = [
        tensor if mask is None else tensor[mask]
        for tensor, mask in zip(target, _mask_per_tensor(masks, manifest), strict=True)
    ]
    layout = _Layout(codec, manifest, masks, context)
    in_codec, beside = layout.split(kept)
    payload = layout.seal(
        codec.encode(in_codec, layout.codec_context), layout.others.encode(beside)
    )

    def decode() -> list[Array]:
        return decode_update(codec, manifest, payload, masks=masks, context=context)

    if not codec.traits.error_feedback:
        return Encoded(payload, target, None, decode)
    decoded = decode()
    triples = zip(target, decoded, _mask_per_tensor(masks, manifest), strict=True)
    return Encoded(payload, target, [_masked(t - d, m) for t, d, m in triples], lambda: decoded)


def decode_update(
    codec: Codec,
    manifest: Manifest,
    payload: bytes,
    *,
    masks: Masks | None = None,
    context: Context = NO_CONTEXT,
) -> list[Array]:
    """Return the update in `payload`, float32 in manifest shapes; raise WireError otherwise.

    Safe on hostile bytes: nothing larger than the manifest's tensors is allocated. Values that
    were not sent (see `coverage`) are zero.
    """
    layout = _Layout(codec, manifest, masks, context)
    codec_data, other_data = layout.unseal(payload)
    in_codec = codec.decode(codec_data, layout.codec_shapes, layout.codec_context)
    kept = layout.join(in_codec, layout.others.decode(other_data))
    return [
        _expand(values, mask, spec)
        for values, mask, spec in zip(
            kept, _mask_per_tensor(masks, manifest), manifest, strict=True
        )
    ]


def coverage(codec: Codec, manifest: Manifest, context: Context = NO_CONTEXT) -> list[Mask | None]:
    """Return by tensor where an update holds a value, None if it does everywhere.

    A tensor in the codec counts as everywhere, even in a sketch, which is right in the mean.
    """
    layout = _Layout(codec, manifest, None, context)
    return layout.join([None] * len(layout.codec_shapes), layout.others.coverage())


def read_report(
    codec: Codec,
    manifest: Manifest,
    payload: bytes,
    *,
    masks: Masks | None = None,
    context: Context = NO_CONTEXT,
) -> Report | None:
    """Return the report of importance in a payload that decodes, None if it holds none.

    None under a mask too: the values that it keeps of a tensor have no rows and columns.
    """
    if _kept_shapes(manifest, masks) != _kept_shapes(manifest, None):
        return None
    layout = _Layout(codec, manifest, masks, context)
    data, _ = layout.unseal(payload)
    return codec.read_report(data, layout.codec_shapes, context)


def sketched_shapes(manifest: Manifest) -> list[Shape]:
    """Return the shapes of the tensors that an allocation of importance covers."""
    return [spec.shape for spec in manifest if spec.role is Role.TRAINABLE]


def max_payload(codec: Codec, manifest: Manifest) -> int:
    """Return the most bytes that `encode_update` makes; longer payloads are refused unread."""
    layout = _Layout(codec, manifest, None, NO_CONTEXT)
    # The values that a mask keeps of a tensor are a vector.
    vectors = [(math.prod(shape),) for shape in layout.codec_shapes]
    _, beside = layout.split([spec.shape for spec in manifest])
    limit = max(codec.limit(layout.codec_shapes), codec.limit(vectors))
    limit += NearLossless(beside).limit()
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


class _Layout:
    """Which tensors of an update take the codec, which travel beside it, and how.

    docs/wire-format.md calls the former coarse and the latter fine.
    """

    def __init__(
        self, codec: Codec, manifest: Manifest, masks: Masks | None, context: Context
    ) -> None:
        traits = codec.traits

        def takes_codec(spec: TensorSpec) -> bool:
            if traits.lossless:
                return True
            large = traits.takes_small_tensors or spec.size >= SMALL
            return spec.role is Role.TRAINABLE and large

        self._manifest = manifest
        self._shapes = _kept_shapes(manifest, masks)
        self._in_codec = [i for i, spec in enumerate(manifest) if takes_codec(spec)]
        self._beside = [i for i, spec in enumerate(manifest) if not takes_codec(spec)]
        self.codec_shapes = [self._shapes[i] for i in self._in_codec]
        self.codec_context = context
        if context.allocation and traits.takes_small_tensors:  # it covers these tensors, unmasked
            whole = [manifest.specs[i].shape for i in self._in_codec]
            fitting = restrict_to_masked(context.allocation, whole, self.codec_shapes)
            self.codec_context = replace(context, allocation=fitting)
        self._envelope_context = str(codec).encode() + manifest.digest
        if traits.keyed:
            self._envelope_context += context.digest
        self.others = self._other_tensors(codec, context)

    def _other_tensors(self, codec: Codec, context: Context) -> OtherTensors:
        shapes = [self._shapes[i] for i in self._beside]
        if not codec.traits.statistics_as_values:
            return NearLossless(shapes)
        cheap = codec.limit(self.codec_shapes) // _STATISTICS_SHARE
        size = sum(math.prod(shape) for shape in shapes)
        return StatisticValues(
            shapes,
            context.statistics,
            sent=codec.traits.sends_statistics,
            slot=context.slot % context.slots,
            parts=1 if size <= cheap else context.slots,
        )

    def split(self, tensors: Sequence[T]) -> tuple[list[T], list[T]]:
        """Return the tensors that take the codec, and those that travel beside it."""
        return [tensors[i] for i in self._in_codec], [tensors[i] for i in self._beside]

    def join(self, in_codec: Sequence[T], beside: Sequence[T]) -> list[T]:
        """Return all tensors in manifest order; the inverse of `split`."""
        by_number = dict(zip(self._in_codec, in_codec, strict=True))
        by_number.update(zip(self._beside, beside, strict=True))
        return [by_number[i] for i in range(len(self._manifest))]

    def seal(self, in_codec: bytes, beside: bytes) -> bytes:
        """Return the payload of the two encoded sections."""
        return seal(varint(len(in_codec)) + in_codec + beside, self._envelope_context)

    def unseal(self, payload: bytes) -> tuple[bytes, bytes]:
        """Return the two encoded sections of a payload; raise WireError otherwise."""
        reader = Reader(unseal(payload, self._envelope_context))
        in_codec = reader.take(reader.varint())
        return in_codec, reader.take(reader.remaining)


def _mask_per_tensor(masks: Masks | None, manifest: Manifest) -> Masks:
    return [None] * len(manifest) if masks is None else masks


def _kept_shapes(manifest: Manifest, masks: Masks | None) -> list[Shape]:
    return [
        spec.shape if mask is None else (int(mask.sum()),)
        for spec, mask in zip(manifest, _mask_per_tensor(masks, manifest), strict=True)
    ]


def _masked(tensor: Array, mask: Mask | None) -> Array:
    return tensor if mask is None else np.where(mask, tensor, np.float32(0))


def _expand(values: Array, mask: Mask | None, spec: TensorSpec) -> Array:
    if mask is None:
        return values
    out = np.zeros(spec.shape, np.float32)
    out[mask] = values
    return out
