"""`sign`: one bit a value and its mean magnitude (Seide et al. 2014; Karimireddy et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.errors import WireError
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.stage import Form, Shape, Values, symbols
from featherfed.compression.traits import Traits

_SIDE_BYTES = 4


@dataclass(frozen=True)
class Sign:
    """Send signs, scaled by the mean magnitude of the tensor.

    After `topk` this is sparse ternary compression (STC, Sattler et al. 2019).
    """

    name: ClassVar[str] = "sign"
    traits: ClassVar[Traits] = Traits(error_feedback=True)

    @property
    def output(self) -> Form:
        """Symbols of one bit."""
        return symbols(1)

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return 1 for each value that is not negative; the side information is the magnitude."""
        flat = x.ravel()
        mean = float(np.mean(np.abs(flat), dtype=np.float64)) if flat.size else 0.0
        return (flat >= 0).astype(np.uint8), np.array(mean, "<f4").tobytes()

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return plus or minus the magnitude."""
        if len(side) != _SIDE_BYTES:
            raise WireError(f"sign needs {_SIDE_BYTES} side bytes, got {len(side)}")
        magnitude = np.frombuffer(side, "<f4")[0]
        if not np.isfinite(magnitude) or magnitude < 0:
            raise WireError("sign magnitude is out of range")
        x: Array = np.where(values > 0, magnitude, -magnitude).astype(np.float32)
        return x.reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return four bytes."""
        return _SIDE_BYTES
