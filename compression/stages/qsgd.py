"""`qsgd(levels)`: unbiased stochastic quantization (Alistarh et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.stage import Form, Shape, Values, symbols
from featherfed.compression.traits import Traits

_BUCKET = 512  # values that share a norm, as in the paper's experiments
_SIDE_BYTES = 4


@dataclass(frozen=True)
class Qsgd:
    """Round at random to one of `levels` steps up to the norm of each 512 values.

    The mean over the randomness is the value itself, so there is no error feedback. A code is a
    byte: an entropy stage after it (the paper uses Elias coding) makes it small.
    """

    levels: int

    name: ClassVar[str] = "qsgd"
    traits: ClassVar[Traits] = Traits()

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 127:
            raise CodecError(f"qsgd needs 1 to 127 levels, got {self.levels!r}")

    @property
    def output(self) -> Form:
        """Symbols of 8 bits."""
        return symbols(8)

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the codes; the side information is a float32 norm for every 512 values."""
        flat = x.ravel().astype(np.float64)
        starts = np.arange(0, flat.size, _BUCKET)
        norms = np.sqrt(np.add.reduceat(np.square(flat), starts)) if flat.size else starts
        # Rounded up, so that no value lies beyond its norm.
        norms = np.nextafter(norms.astype(np.float32), np.float32(np.inf)) * (norms > 0)
        own = np.repeat(norms.astype(np.float64), _BUCKET)[: flat.size]
        scaled = np.abs(flat) / np.where(own > 0, own, 1) * self.levels
        draws = key.child("rounding").words(flat.size) >> np.uint64(11)
        levels = np.floor(scaled + draws.astype(np.float64) * 2.0**-53)
        codes = self.levels + np.copysign(np.minimum(levels, self.levels), flat)
        return codes.astype(np.uint8), norms.astype("<f4").tobytes()

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return (code - levels) / levels times the norm for every code."""
        if len(side) != self.side_limit(shape):
            raise WireError(f"qsgd needs {self.side_limit(shape)} side bytes, got {len(side)}")
        norms = np.frombuffer(side, "<f4")
        if not np.isfinite(norms).all() or (norms < 0).any():
            raise WireError("qsgd norm is out of range")
        if (values > 2 * self.levels).any():
            raise WireError(f"qsgd code is beyond {2 * self.levels}")
        own = np.repeat((norms / np.float32(self.levels)).astype(np.float32), _BUCKET)
        centred = values.astype(np.float32) - np.float32(self.levels)
        return (centred * own[: len(values)]).astype(np.float32).reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return four bytes for every 512 values."""
        return _SIDE_BYTES * -(-math.prod(shape) // _BUCKET)
