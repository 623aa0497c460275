"""The contract of a stage, one step of a codec, and how its values are packed into bytes.

A stage is a frozen dataclass: its fields are its arguments in codec text, in this order.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.traits import Traits

Shape = tuple[int, ...]
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Form:
    """How values are represented: as a numpy dtype, and in how many bits on the wire."""

    dtype: str
    bits: int


FLOATS = Form("<f4", 32)
HALVES = Form("<f2", 16)


def symbols(bits: int) -> Form:
    """Return the form of unsigned integers below 2**bits, 1 <= bits <= 16."""
    return Form("<u1" if bits <= 8 else "<u2", bits)


@runtime_checkable
class ArrayStage(Protocol):
    """Turns one float32 array into fewer or coarser values plus a little side information."""

    name: ClassVar[str]
    traits: ClassVar[Traits]

    @property
    def output(self) -> Form:
        """The form of the values that `encode` returns."""

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the encoded values (1-D) and the side information; x is finite float32.

        `key`: randomness that both sides share, different for every tensor of every update.
        Deterministic: equal arguments give equal results.
        """

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return the float32 array of `shape`; raise WireError if `side` cannot be right."""

    def count(self, shape: Shape) -> int:
        """Return how many values `encode` returns for an array of `shape`."""

    def side_limit(self, shape: Shape) -> int:
        """Return the most bytes of side information that an array of `shape` can need."""


@runtime_checkable
class ByteStage(Protocol):
    """Turns bytes into fewer bytes, without loss."""

    name: ClassVar[str]

    def compress(self, data: bytes) -> bytes:
        """Return the compressed bytes."""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return the original, at most `limit` bytes; raise WireError otherwise."""


Stage = ArrayStage | ByteStage


def stage_text(stage: Any) -> str:
    """Return a stage as codec text: its name and its arguments, without trailing defaults."""
    values = [(getattr(stage, f.name), f.default) for f in fields(stage)]
    while values and values[-1][1] is not MISSING and values[-1][0] == values[-1][1]:
        values.pop()
    return str(stage.name) + (f"({', '.join(str(v) for v, _ in values)})" if values else "")


def pack(values: Values, form: Form) -> bytes:
    """Return 1-D `values` as bytes, `form.bits` each, little-endian, zero bits at the end."""
    if form.bits in (8, 16, 32):
        return np.ascontiguousarray(values, dtype=form.dtype).tobytes()
    shifts = np.arange(form.bits, dtype=np.uint16)
    bits = (values.astype(np.uint16)[:, None] >> shifts) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def unpack(data: bytes | memoryview, form: Form, count: int) -> Values:
    """Return the `count` values that `pack` put into `data` (exactly `packed_size` bytes)."""
    if form.bits in (8, 16, 32):
        return np.frombuffer(data, dtype=form.dtype)
    raw = np.frombuffer(data, dtype=np.uint8)
    bits = np.unpackbits(raw, count=count * form.bits, bitorder="little").reshape(count, form.bits)
    weights = (1 << np.arange(form.bits)).astype(form.dtype)
    values: Values = (bits * weights).sum(axis=1, dtype=form.dtype)
    return values


def packed_size(form: Form, count: int) -> int:
    """Return the bytes that `count` values take."""
    return (count * form.bits + 7) // 8
