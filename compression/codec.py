"""The contract of a codec: a list of float32 tensors to bytes and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.context import NO_CONTEXT, Context
from featherfed.compression.errors import CodecError
from featherfed.compression.importance import Report
from featherfed.compression.sparse import Tensor
from featherfed.compression.stage import Shape
from featherfed.compression.traits import Traits

MAX_MAGNITUDE = 1e18
"""Largest magnitude that can be encoded: sums, squares and scaled values stay finite in float32."""


class Decoded(NamedTuple):
    """What a codec finds in a payload: the tensors, and how much noise is in them.

    `tensors`: float32, without the zeros where only few values were sent. `noise`: about how much
    larger their energy (sum of squares) is than that of the tensors before encoding, since noise
    that is zero in the mean adds its own energy; 0 if next to nothing is lost, None if it cannot be
    told.
    """

    tensors: Sequence[Tensor]
    noise: float | None


class Codec(Protocol):
    """Turns a list of float32 tensors into bytes and back. Equal arguments give equal results.

    `str` of a codec is its canonical text (registry.py).
    """

    @property
    def traits(self) -> Traits:
        """The properties that callers depend on."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the stages that a peer must know."""

    def encode(self, tensors: Sequence[Array], context: Context = NO_CONTEXT) -> bytes:
        """Return the tensors as bytes; raise CodecError for NaN or beyond MAX_MAGNITUDE."""

    def decode(
        self, data: bytes, shapes: Sequence[Shape], context: Context = NO_CONTEXT
    ) -> list[Array]:
        """Return float32 tensors of exactly `shapes`, all finite; raise WireError otherwise."""

    def decode_sparse(
        self, data: bytes, shapes: Sequence[Shape], context: Context = NO_CONTEXT
    ) -> Decoded:
        """Return what `decode` does, without the zeros, and the noise in it."""

    def read_report(self, data: bytes, shapes: Sequence[Shape], context: Context) -> Report | None:
        """Return the report of importance in encoded `data`, None if it holds none."""

    def limit(self, shapes: Sequence[Shape]) -> int:
        """Return the most bytes that tensors of `shapes` take before byte stages."""


def within(tensor: Array, limit: float) -> bool:
    """Whether no value is NaN or of a magnitude beyond `limit`."""
    most = np.float32(limit)
    return bool(tensor.max(initial=0) <= most and tensor.min(initial=0) >= -most)


def check_magnitudes(tensors: Sequence[Array]) -> None:
    """Raise CodecError for NaN, infinity or values beyond MAX_MAGNITUDE."""
    for number, tensor in enumerate(tensors):
        if not within(tensor, MAX_MAGNITUDE):
            raise CodecError(
                f"tensor {number} holds NaN, infinity or values beyond {MAX_MAGNITUDE:g}"
            )
