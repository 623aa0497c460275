"""`eden`: random rotation and one bit a value, unbiased (Vargaftik et al. 2021 and 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.hadamard import block_scales, padded, rotate, rotate_back
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.stage import Form, Shape, Values, symbols
from featherfed.compression.traits import Traits

_SIDE_BYTES = 4


@dataclass(frozen=True)
class Eden:
    """Send signs after a random rotation that both sides know; at one bit EDEN is DRIVE.

    The scale ||x||^2 / ||rotated x||_1 makes the mean over rotations the tensor itself.
    """

    name: ClassVar[str] = "eden"
    traits: ClassVar[Traits] = Traits(keyed=True)

    @property
    def output(self) -> Form:
        """Symbols of one bit."""
        return symbols(1)

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the signs, padded to a multiple of 64; the side information is the scale."""
        z = rotate(x, key).astype(np.float64)
        total = float(np.abs(z).sum())
        scale = float(np.square(x.astype(np.float64)).sum()) / total if total else 0.0
        return (z >= 0).astype(np.uint8), np.array(scale, "<f4").tobytes()

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return the signs rotated back and scaled."""
        if len(side) != _SIDE_BYTES:
            raise WireError(f"eden needs {_SIDE_BYTES} side bytes, got {len(side)}")
        scale = np.frombuffer(side, "<f4")[0]
        if not np.isfinite(scale) or scale < 0:
            raise WireError("eden scale is out of range")
        signs = np.where(values > 0, np.float32(1), np.float32(-1))
        with np.errstate(over="ignore"):
            x: Array = rotate_back(signs, key) * (block_scales(signs.size) * scale)
        return x[: math.prod(shape)].reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`, rounded up to a multiple of 64."""
        return padded(math.prod(shape))

    def side_limit(self, shape: Shape) -> int:
        """Return four bytes."""
        return _SIDE_BYTES
