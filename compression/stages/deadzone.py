"""`deadzone(step)`: uniform quantization with a dead zone, for an entropy coder (Sullivan 1996)."""

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

_ROUNDING = 1 / 3  # a half would be the nearest level; less makes zeros, which cost little
_ZERO = 127
_SIDE_BYTES = 4


@dataclass(frozen=True)
class DeadZone:
    """Round towards zero in steps of `step` times the tensor's root mean square.

    A code is a byte, so that an entropy stage can count it. Values beyond 127 steps are clipped,
    and what is missing goes into the next update (error feedback).
    """

    step: float

    name: ClassVar[str] = "deadzone"
    traits: ClassVar[Traits] = Traits(error_feedback=True)

    def __post_init__(self) -> None:
        if isinstance(self.step, int):
            object.__setattr__(self, "step", float(self.step))
        if not isinstance(self.step, float) or not 0.001 <= self.step <= 100:
            raise CodecError(f"deadzone needs a step of 0.001 to 100 times rms, got {self.step!r}")

    @property
    def output(self) -> Form:
        """Symbols of 8 bits."""
        return symbols(8)

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the codes; the side information is the float32 step."""
        flat = x.ravel().astype(np.float64)
        rms = math.sqrt(float(np.mean(np.square(flat)))) if flat.size else 0.0
        step = np.float32(self.step * rms)
        scaled = np.divide(flat, np.float64(step), out=flat) if step > 0 else np.zeros_like(flat)
        levels = np.abs(scaled)  # and in place from here on: the whole model's passes take long
        levels += _ROUNDING
        np.minimum(np.floor(levels, out=levels), _ZERO, out=levels)
        codes = np.copysign(levels, scaled, out=levels)
        codes += _ZERO
        return codes.astype(np.uint8), step.astype("<f4").tobytes()

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return (code - 127) * step for every code."""
        if len(side) != _SIDE_BYTES:
            raise WireError(f"deadzone needs {_SIDE_BYTES} side bytes, got {len(side)}")
        step = np.frombuffer(side, "<f4")[0]
        if not np.isfinite(step) or step < 0:
            raise WireError("deadzone step is out of range")
        with np.errstate(over="ignore", under="ignore"):
            scaled: Array = (values.astype(np.float32) - np.float32(_ZERO)) * step
        return scaled.reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return four bytes."""
        return _SIDE_BYTES
