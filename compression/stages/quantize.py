"""`quantize(bits)`, `quantize(bits, channel)`: uniform affine quantization (Jacob et al. 2018)."""

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

MAX_BITS = 16
_SIDE_BYTES = 6  # float32 step and uint16 zero point


@dataclass(frozen=True)
class Quantize:
    """Round to 2**bits equal steps between smallest and largest; zero stays exactly zero.

    `axis` says what shares a step and zero point: the whole `tensor`, or each `channel` (the last
    axis). A vector is one channel, and so are the values that a pruning mask keeps of a tensor.
    """

    bits: int
    axis: str = "tensor"

    name: ClassVar[str] = "quantize"
    traits: ClassVar[Traits] = Traits(error_feedback=True, dense=True)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= MAX_BITS:
            raise CodecError(f"quantize needs 1 to {MAX_BITS} bits, got {self.bits!r}")
        if self.axis not in ("tensor", "channel"):
            raise CodecError(f"quantize works per tensor or channel, not per {self.axis!r}")

    @property
    def output(self) -> Form:
        """Symbols of `bits` bits."""
        return symbols(self.bits)

    def _channels(self, shape: Shape) -> int:
        return max(1, shape[-1]) if self.axis == "channel" and len(shape) > 1 else 1

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the codes; side information: a float32 step, then a uint16 zero by channel."""
        rows = x.reshape(-1, self._channels(x.shape))
        top = 2**self.bits - 1
        low = np.minimum(rows.min(axis=0, initial=0), 0).astype(np.float64)
        high = np.maximum(rows.max(axis=0, initial=0), 0).astype(np.float64)
        step = ((high - low) / top).astype(np.float32)
        divisor = np.where(step > 0, step, np.float32(1)).astype(np.float64)
        zero = np.clip(np.rint(-low / divisor), 0, top)
        codes = np.clip(np.rint(rows / divisor + zero), 0, top)
        side = step.astype("<f4").tobytes() + zero.astype("<u2").tobytes()
        return codes.astype(self.output.dtype).ravel(), side

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return (code - zero) * step for every code."""
        channels = self._channels(shape)
        if len(side) != channels * _SIDE_BYTES:
            raise WireError(f"quantize needs {channels * _SIDE_BYTES} side bytes, got {len(side)}")
        step = np.frombuffer(side, "<f4", channels)
        zero = np.frombuffer(side, "<u2", channels, offset=4 * channels)
        if not np.isfinite(step).all() or (step < 0).any() or (zero >= 2**self.bits).any():
            raise WireError("quantize step or zero point is out of range")
        centred = values.reshape(-1, channels).astype(np.float32) - zero.astype(np.float32)
        with np.errstate(over="ignore", under="ignore"):
            scaled: Array = centred * step
        return scaled.reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of `shape`."""
        return math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return six bytes a channel."""
        return _SIDE_BYTES * self._channels(shape)
