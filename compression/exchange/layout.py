"""Which tensors of an update take the codec, and which travel beside it.

Per tensor, by role and size, never by name: trainable tensors of SMALL values or more take the
codec; smaller ones and statistics (tensors that are not trained) travel near-lossless beside it.

A sketch is so small that near-lossless tensors would cost more than the rest: it takes all
trainable tensors, and statistics travel as new values in 8 bits, if at all. If even these cost too
much, each value is sent by one client of the round only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from featherfed.compression.buffer import Reader, varint
from featherfed.compression.codec import Codec
from featherfed.compression.context import Context
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec
from featherfed.compression.exchange.masks import Masks, kept_shapes
from featherfed.compression.exchange.other_tensors import (
    NearLossless,
    OtherTensors,
    StatisticValues,
)
from featherfed.compression.importance import restrict_to_masked
from featherfed.compression.wire import seal, unseal

SMALL = 1024
"""Tensors with fewer values (biases, normalisation) are not worth a lossy codec."""

_STATISTICS_SHARE = 8  # every client sends all statistics if its sketch is so many times larger

T = TypeVar("T")


class Layout:
    """An update's two sections: tensors in the codec, and others.

    docs/wire-format.md calls the former coarse and the latter fine. `codec_shapes`: the shapes that
    the codec is given, and `codec_context` its context. `others`: what encodes the other tensors.
    """

    def __init__(self, codec: Codec, manifest: Manifest, masks: Masks, context: Context) -> None:
        if manifest.sent is not manifest:
            raise ValueError("frozen tensors are in no update; give the manifest's `sent`")
        traits = codec.traits

        def takes_codec(spec: TensorSpec) -> bool:
            if traits.lossless:
                return True
            large = traits.takes_small_tensors or spec.size >= SMALL
            return spec.role is Role.TRAINABLE and large

        self._manifest = manifest
        self._shapes = kept_shapes(manifest, masks)
        self._in_codec = [i for i, spec in enumerate(manifest) if takes_codec(spec)]
        self._beside = [i for i, spec in enumerate(manifest) if not takes_codec(spec)]
        self.codec_shapes = [self._shapes[i] for i in self._in_codec]
        self.codec_context = context
        whole = [manifest.specs[i].shape for i in self._in_codec]
        if context.allocation and traits.takes_small_tensors and whole != self.codec_shapes:
            # It covers these tensors, unmasked.
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
            parts=context.slots if codec.traits.shares_statistics and size > cheap else 1,
            whole=not codec.traits.shares_statistics,
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
