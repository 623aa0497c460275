"""A codec made of stages in a row: array stages, then at most one byte stage.

Array stages work on each tensor alone, the byte stage on all of them together.
Layout before the byte stage: for each tensor and array stage a varint length and the side
information; then each tensor's values, bit-packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.buffer import MAX_VARINT_BYTES, Reader, varint
from featherfed.compression.codec import Decoded, check_magnitudes
from featherfed.compression.context import NO_CONTEXT, Context
from featherfed.compression.errors import CodecError, NonFiniteError, WireError
from featherfed.compression.importance import Report
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
from featherfed.compression.traits import Traits, chain_traits


@dataclass(frozen=True)
class Chain:
    """A codec of array stages followed by a byte stage; raises CodecError for any other order."""

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
                form = stage.output

    @cached_property
    def _array_stages(self) -> list[ArrayStage]:
        return [stage for stage in self.stages if isinstance(stage, ArrayStage)]

    @cached_property
    def _byte_stages(self) -> list[ByteStage]:
        return [stage for stage in self.stages if isinstance(stage, ByteStage)]

    @property
    def _form(self) -> Form:
        """The form of the values that the last array stage gives."""
        return self._array_stages[-1].output if self._array_stages else FLOATS

    @cached_property
    def traits(self) -> Traits:
        """The combined traits of its array stages; byte stages are lossless."""
        return chain_traits([stage.traits for stage in self._array_stages])

    @property
    def needs(self) -> frozenset[str]:
        """The names of its stages."""
        return frozenset(stage.name for stage in self.stages)

    def encode(self, tensors: Sequence[Array], context: Context = NO_CONTEXT) -> bytes:
        """Return the tensors as bytes; raise CodecError for NaN or beyond MAX_MAGNITUDE."""
        check_magnitudes(tensors)
        sides: list[bytes] = []
        values: list[bytes] = []
        for number, x in enumerate(tensors):
            key = context.update_key.child(number)
            for stage in self._array_stages:
                x, side = stage.encode(x, key)
                sides += [varint(len(side)), side]
            values.append(pack(x.ravel(), self._form))
        data = b"".join(sides + values)
        for compressor in self._byte_stages:
            data = compressor.compress(data)
        return data

    def decode(
        self, data: bytes, shapes: Sequence[Shape], context: Context = NO_CONTEXT
    ) -> list[Array]:
        """Return float32 tensors of exactly `shapes`, all finite; raise WireError otherwise."""
        limit = self.limit(shapes)
        for compressor in reversed(self._byte_stages):
            data = compressor.decompress(data, limit)
        reader = Reader(data)
        sides = [self._read_sides(reader, shape) for shape in shapes]
        tensors = [
            self._read_tensor(reader, side, shape, context.update_key.child(number))
            for number, (side, shape) in enumerate(zip(sides, shapes, strict=True))
        ]
        reader.finish()
        return tensors

    def decode_sparse(
        self, data: bytes, shapes: Sequence[Shape], context: Context = NO_CONTEXT
    ) -> Decoded:
        """Return what `decode` does, as a chain sends all values; noise if there is next to none.

        How much others lose depends on values that the receiver does not know.
        """
        noise = 0.0 if self.traits.near_lossless else None
        return Decoded(self.decode(data, shapes, context), noise)

    def _read_sides(self, reader: Reader, shape: Shape) -> list[bytes]:
        sides = []
        for stage, inner in zip(self._array_stages, self._shapes(shape), strict=False):
            length = reader.varint()
            if length > stage.side_limit(inner):
                raise WireError(f"{stage.name}: {length} bytes of side information are too many")
            sides.append(reader.take(length))
        return sides

    def _read_tensor(self, reader: Reader, sides: list[bytes], shape: Shape, key: Key) -> Array:
        shapes = self._shapes(shape)
        count = int(np.prod(shapes[-1]))
        x = unpack(reader.view(packed_size(self._form, count)), self._form, count)
        for stage, side, inner in zip(
            reversed(self._array_stages), reversed(sides), reversed(shapes[:-1]), strict=True
        ):
            x = stage.decode(x, side, inner, key)
        if not np.isfinite(x).all():
            raise NonFiniteError("an update holds NaN or infinity")
        return x.astype(np.float32, copy=not x.flags.writeable).reshape(shape)

    def read_report(self, data: bytes, shapes: Sequence[Shape], context: Context) -> Report | None:
        """Return None: a chain's payload holds no report of importance."""
        return None

    def _shapes(self, shape: Shape) -> list[Shape]:
        """Return the input shape of each array stage, then the output shape of the last."""
        shapes = [shape]
        for stage in self._array_stages:
            shapes.append((stage.count(shapes[-1]),))
        return shapes

    def limit(self, shapes: Sequence[Shape]) -> int:
        """Return the most bytes that tensors of `shapes` take before byte stages."""
        total = 0
        for shape in shapes:
            *seen, last = self._shapes(shape)
            total += packed_size(self._form, int(np.prod(last)))
            for stage, inner in zip(self._array_stages, seen, strict=True):
                total += stage.side_limit(inner) + MAX_VARINT_BYTES
        return total

    @cached_property
    def _text(self) -> str:
        return " | ".join(stage_text(stage) for stage in self.stages)

    def __str__(self) -> str:
        return self._text


def chain(*stages: Stage) -> Chain:
    """Return the codec that runs `stages` in order; raise CodecError if the order is wrong."""
    return Chain(stages)
