"""`chain`: stages in a row are a codec, a pair of pure functions over a list of tensors.

Array stages come first and work on each tensor alone, byte stages last and work on all together.
Layout before the byte stages: for each tensor and array stage a varint length and the side
information; then each tensor's values, bit-packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.buffer import MAX_VARINT_BYTES, Reader, varint
from featherfed.compression.context import PLAIN, Context
from featherfed.compression.errors import CodecError, NonFiniteError, WireError
from featherfed.compression.key import Key
from featherfed.compression.stage import (
    FLOATS,
    ArrayStage,
    ByteStage,
    Form,
    Shape,
    Stage,
    pack,
    packed_size,
    stage_text,
    unpack,
)

MAX_MAGNITUDE = 1e18
"""No value is larger: sums and squares, and what any stage makes of it, stay finite in float32."""


class Codec(Protocol):
    """Turns a list of float32 tensors into bytes and back. No hidden state: equal in, equal out."""

    @property
    def lossless(self) -> bool:
        """Decoding gives back every bit."""

    @property
    def feedback(self) -> bool:
        """The sender must keep the residual and add it to its next update (error feedback)."""

    @property
    def dense(self) -> bool:
        """Updates can be compared coordinate by coordinate: each value is close to what it was."""

    @property
    def keyed(self) -> bool:
        """A payload means nothing without the context it was made in."""

    @property
    def takes_all(self) -> bool:
        """Small trainable tensors too: near-lossless would cost more than all the rest."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the stages that a peer must know."""

    def encode(self, tensors: Sequence[Array], context: Context = PLAIN) -> bytes:
        """Return the tensors as bytes; raise CodecError for NaN or beyond MAX_MAGNITUDE."""

    def decode(self, data: bytes, shapes: Sequence[Shape], context: Context = PLAIN) -> list[Array]:
        """Return float32 tensors of exactly `shapes`, all finite; raise WireError otherwise."""

    def limit(self, shapes: Sequence[Shape]) -> int:
        """Return the most bytes that tensors of `shapes` take before byte stages."""


@dataclass(frozen=True)
class Chain:
    """A codec of array stages followed by byte stages; a wrong order fails when it is built."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise CodecError("a codec needs at least one stage, e.g. float32")
        form = FLOATS
        packed_by = ""
        for stage in self.stages:
            if isinstance(stage, ByteStage):
                if packed_by:
                    raise CodecError(f"{stage.name} after {packed_by}: one byte stage is enough")
                packed_by = stage.name
            elif packed_by:
                raise CodecError(f"{stage.name} works on tensors and must come before {packed_by}")
            elif form != FLOATS:
                raise CodecError(f"{stage.name} needs floats; the stage before it gives others")
            else:
                form = stage.gives

    @cached_property
    def _arrays(self) -> list[ArrayStage]:
        return [s for s in self.stages if isinstance(s, ArrayStage)]

    @cached_property
    def _bytes(self) -> list[ByteStage]:
        return [s for s in self.stages if isinstance(s, ByteStage)]

    @property
    def _form(self) -> Form:
        return self._arrays[-1].gives if self._arrays else FLOATS

    @property
    def lossless(self) -> bool:
        """Every stage is."""
        return all(stage.lossless for stage in self._arrays)

    @property
    def feedback(self) -> bool:
        """Any stage asks for it."""
        return any(stage.feedback for stage in self._arrays)

    @property
    def dense(self) -> bool:
        """Every stage is."""
        return all(stage.dense for stage in self._arrays)

    @property
    def keyed(self) -> bool:
        """Any stage is."""
        return any(stage.keyed for stage in self._arrays)

    @property
    def takes_all(self) -> bool:
        """No."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """The names of its stages."""
        return frozenset(stage.name for stage in self.stages)

    def encode(self, tensors: Sequence[Array], context: Context = PLAIN) -> bytes:
        """Return the tensors as bytes; raise CodecError for NaN or beyond MAX_MAGNITUDE."""
        sides: list[bytes] = []
        values: list[bytes] = []
        for number, tensor in enumerate(tensors):
            if not (np.abs(tensor) <= MAX_MAGNITUDE).all():
                raise CodecError(
                    f"tensor {number} holds NaN, infinity or values beyond {MAX_MAGNITUDE:g}"
                )
            x = tensor
            key = context.own.child(number)
            for stage in self._arrays:
                x, side = stage.encode(x, key)
                sides += [varint(len(side)), side]
            values.append(pack(x.ravel(), self._form))
        data = b"".join(sides + values)
        for compressor in self._bytes:
            data = compressor.compress(data)
        return data

    def decode(self, data: bytes, shapes: Sequence[Shape], context: Context = PLAIN) -> list[Array]:
        """Return float32 tensors of exactly `shapes`, all finite; raise WireError otherwise."""
        limit = self.limit(shapes)
        for compressor in reversed(self._bytes):
            data = compressor.decompress(data, limit)
        reader = Reader(data)
        sides = [self._read_sides(reader, shape) for shape in shapes]
        tensors = [
            self._read_tensor(reader, side, shape, context.own.child(number))
            for number, (side, shape) in enumerate(zip(sides, shapes, strict=True))
        ]
        reader.finish()
        return tensors

    def _read_sides(self, reader: Reader, shape: Shape) -> list[bytes]:
        sides = []
        for stage, inner in zip(self._arrays, self._shapes(shape), strict=False):
            length = reader.varint()
            if length > stage.side_limit(inner):
                raise WireError(f"{stage.name}: {length} bytes of side information are too many")
            sides.append(reader.take(length))
        return sides

    def _read_tensor(self, reader: Reader, sides: list[bytes], shape: Shape, key: Key) -> Array:
        shapes = self._shapes(shape)
        count = int(np.prod(shapes[-1]))
        x = unpack(reader.take(packed_size(self._form, count)), self._form, count)
        for stage, side, inner in zip(
            reversed(self._arrays), reversed(sides), reversed(shapes[:-1]), strict=True
        ):
            x = stage.decode(x, side, inner, key)
        if not np.isfinite(x).all():
            raise NonFiniteError("an update holds NaN or infinity")
        return x.astype(np.float32).reshape(shape)

    def _shapes(self, shape: Shape) -> list[Shape]:
        """Return the shape that each array stage sees, and the one that the last hands on."""
        shapes = [shape]
        for stage in self._arrays:
            shapes.append((stage.count(shapes[-1]),))
        return shapes

    def limit(self, shapes: Sequence[Shape]) -> int:
        """Return the most bytes that tensors of `shapes` take before byte stages."""
        total = 0
        for shape in shapes:
            *seen, last = self._shapes(shape)
            total += packed_size(self._form, int(np.prod(last)))
            for stage, inner in zip(self._arrays, seen, strict=True):
                total += stage.side_limit(inner) + MAX_VARINT_BYTES
        return total

    def __str__(self) -> str:
        return " | ".join(stage_text(stage) for stage in self.stages)


def chain(*stages: Stage) -> Chain:
    """Return the codec that runs `stages` in order; raise CodecError if the order is wrong."""
    return Chain(stages)
