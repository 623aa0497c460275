"""An update of a whole model as one payload, error feedback, and how an update is applied.

layout.py decides which tensors take the codec and which travel beside it. Values that a pruning
mask removes are not sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.codec import MAX_MAGNITUDE, Codec, within
from featherfed.compression.context import NO_CONTEXT, Context
from featherfed.compression.errors import OutOfRangeError
from featherfed.compression.exchange.layout import Layout
from featherfed.compression.exchange.manifest import Manifest, Role
from featherfed.compression.exchange.masks import (
    Mask,
    Masks,
    expand_kept,
    kept_shapes,
    kept_values,
    mask_weights,
    no_masks,
)
from featherfed.compression.exchange.other_tensors import NearLossless
from featherfed.compression.exchange.round import RoundStart
from featherfed.compression.importance import Report
from featherfed.compression.sparse import SparseTensor, Tensor, dense, values_of
from featherfed.compression.stage import Shape

_ENVELOPE = 64  # more bytes than magic, version, lengths and checksum take
_EXPANSION = 64  # a byte stage adds at most 1 / 64 to bytes that it cannot compress


@dataclass(frozen=True)
class EncodedUpdate:
    """A payload, what a receiver decodes it to, and what the sender keeps for its next update.

    `target` is the update with the old residual added. What a receiver decodes is computed when it,
    or the residual, is first asked for.
    """

    payload: bytes
    target: list[Array]
    _decode: Callable[[], list[Array]] = field(compare=False)
    _masks: Masks = field(compare=False)
    _error_feedback: bool

    @cached_property
    def decoded(self) -> list[Array]:
        """What a receiver decodes the payload to."""
        return self._decode()

    @cached_property
    def residual(self) -> list[Array] | None:
        """`target` minus `decoded`, zero at masked values; None for a codec without feedback."""
        if not self._error_feedback:
            return None
        return mask_weights(subtract(self.target, self.decoded), self._masks)


def encode_update(
    codec: Codec,
    manifest: Manifest,
    update: Sequence[Array],
    *,
    masks: Masks | None = None,
    residual: Sequence[Array] | None = None,
    context: Context = NO_CONTEXT,
) -> EncodedUpdate:
    """Encode `update` (float32, manifest shapes) plus the `residual` of the last one.

    The residual (error feedback, Seide et al. 2014, Karimireddy et al. 2019) is ignored by codecs
    without that trait. Raises CodecError for values beyond MAX_MAGNITUDE, ValueError for tensors
    that do not fit the manifest.
    """
    manifest.check(update)
    target = list(update)
    if codec.traits.error_feedback and residual is not None:
        target = [u + r for u, r in zip(update, residual, strict=True)]
    masks = no_masks(manifest) if masks is None else masks
    layout = Layout(codec, manifest, masks, context)
    in_codec, beside = layout.split(kept_values(target, masks))
    payload = layout.seal(
        codec.encode(in_codec, layout.codec_context), layout.others.encode(beside)
    )

    def decode() -> list[Array]:
        return decode_update(codec, manifest, payload, masks=masks, context=context)

    return EncodedUpdate(payload, target, decode, masks, codec.traits.error_feedback)


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
    were not sent (see `ReceivedUpdate`) are zero.
    """
    received = receive_update(codec, manifest, payload, masks=masks, context=context)
    return [dense(tensor) for tensor in received.tensors]


class ReceivedUpdate(NamedTuple):
    """What a payload says.

    `tensors`: the update in manifest shapes. `report`: the report of importance, None if there is
    none; none is read under a mask: the values that it keeps of a tensor have no rows and columns.
    `covered`: by tensor where the update holds a value, None if it does everywhere. A tensor in the
    codec counts as sent everywhere, even in a sketch, which is unbiased. `noise`: how much energy
    (sum of squares) the codec added to the trainable tensors, as in `Decoded`; the others travel
    without any.
    """

    tensors: Sequence[Tensor]
    report: Report | None
    covered: list[Mask | None]
    noise: float | None


def receive_update(
    codec: Codec,
    manifest: Manifest,
    payload: bytes,
    *,
    masks: Masks | None = None,
    context: Context = NO_CONTEXT,
) -> ReceivedUpdate:
    """Return all that `payload` says, without the zeros of a sketch; otherwise as `decode_update`.

    So the small sketches of a large cohort cost no passes over the whole model.
    """
    masks = no_masks(manifest) if masks is None else masks
    layout = whole = Layout(codec, manifest, masks, context)
    codec_data, other_data = layout.unseal(payload)
    decoded = codec.decode_sparse(codec_data, layout.codec_shapes, layout.codec_context)
    others = layout.others.decode(other_data)
    report = None
    if kept_shapes(manifest, masks) == [spec.shape for spec in manifest]:
        report = codec.read_report(codec_data, layout.codec_shapes, context)
    if any(mask is not None for mask in masks):
        whole = Layout(codec, manifest, no_masks(manifest), context)
    covered = whole.join([None] * len(whole.codec_shapes), whole.others.coverage())
    tensors = expand_kept(layout.join(decoded.tensors, others), masks)
    return ReceivedUpdate(tensors, report, covered, decoded.noise)


def sketched_shapes(manifest: Manifest) -> list[Shape]:
    """Return the shapes of the tensors that an allocation of importance covers."""
    return [spec.shape for spec in manifest if spec.role is Role.TRAINABLE]


def max_payload(codec: Codec, manifest: Manifest) -> int:
    """Return the most bytes that `encode_update` makes; longer payloads are refused unread."""
    layout = Layout(codec, manifest, no_masks(manifest), NO_CONTEXT)
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
        if not within(weights[i], limit):
            raise OutOfRangeError(f"update takes tensor {spec.name!r} beyond {limit:g}")
        if spec.role is Role.NONNEGATIVE:
            weights[i] = np.where(weights[i] > 0, weights[i], np.float32(0))  # -0.0 too, everywhere
    return weights


def changed_weights(
    start: RoundStart, update: Sequence[Tensor], *, limit: float = MAX_MAGNITUDE
) -> list[Array]:
    """Return the weights that an update leads to, of a sparse tensor only those that it changes.

    Raises OutOfRangeError as `apply_update` does.
    """
    if not start.largest <= np.float32(limit):
        return apply_update(start.manifest, start.weights, list(map(dense, update)), limit=limit)
    before = list(start.weights)
    change = [values_of(tensor) for tensor in update]
    for i, tensor in enumerate(update):
        if isinstance(tensor, SparseTensor):
            before[i] = before[i].reshape(-1)[tensor.positions]
    return apply_update(start.manifest, before, change, limit=limit)
