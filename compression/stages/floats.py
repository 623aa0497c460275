"""Stages that keep floats as floats: `float32` (exact), `float16` (near-lossless), `float8`."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.stage import FLOATS, HALVES, Form, Shape, Values, symbols
from featherfed.compression.traits import Traits

_EXPONENT = struct.Struct("<h")
_EXPONENT_LIMIT = 200
_TOP = 15  # the largest value becomes 2**14 to 2**15: far from overflow, small ones stay normal


@dataclass(frozen=True)
class Float32:
    """Send every value as it is, 4 bytes."""

    name: ClassVar[str] = "float32"
    traits: ClassVar[Traits] = Traits(lossless=True, near_lossless=True, dense=True)

    @property
    def output(self) -> Form:
        """Floats."""
        return FLOATS

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the values of `x`."""
        return x.ravel(), b""

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return the values in `shape`."""
        if side:
            raise WireError("float32 has no side information")
        return values.astype(np.float32).reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return 0."""
        return 0


@dataclass(frozen=True)
class Float16:
    """IEEE half precision with one power-of-two scale per tensor, so that no delta is too small.

    Relative error at most 2**-11 for values down to 2**-29 of the largest; 2 bytes a value and 2
    a tensor.
    """

    name: ClassVar[str] = "float16"
    traits: ClassVar[Traits] = Traits(near_lossless=True, dense=True)

    @property
    def output(self) -> Form:
        """Half-precision floats."""
        return HALVES

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return `x` scaled to the middle of float16's range, and the exponent."""
        largest = float(np.max(np.abs(x), initial=0.0))
        exponent = math.frexp(largest)[1] - _TOP if largest else 0
        return np.ldexp(x.ravel(), -exponent).astype("<f2"), _EXPONENT.pack(exponent)

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return the values times two to the exponent in `side`."""
        if len(side) != _EXPONENT.size:
            raise WireError(f"float16 needs {_EXPONENT.size} bytes of exponent, got {len(side)}")
        (exponent,) = _EXPONENT.unpack(side)
        if abs(exponent) > _EXPONENT_LIMIT:
            raise WireError(f"float16 exponent {exponent} is outside ±{_EXPONENT_LIMIT}")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scaled: Array = np.ldexp(values.astype(np.float32), exponent)
        return scaled.reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return the size of the exponent."""
        return _EXPONENT.size


@dataclass(frozen=True)
class Float8:
    """The upper half of `float16` (E5M2), rounded to nearest: one byte a value and 2 a tensor."""

    name: ClassVar[str] = "float8"
    traits: ClassVar[Traits] = Traits(error_feedback=True, dense=True)

    @property
    def output(self) -> Form:
        """Symbols of 8 bits."""
        return symbols(8)

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the upper bytes of the float16 values, and the exponent."""
        values, side = Float16().encode(x)
        # The largest is below 2**15: rounding up never reaches infinity.
        return ((values.view("<u2").astype(np.uint32) + 0x80) >> 8).astype(np.uint8), side

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return the values; the bits that were rounded off are zero."""
        halves = (values.astype("<u2") << 8).view("<f2")
        return Float16().decode(halves, side, shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return the size of the exponent."""
        return _EXPONENT.size
