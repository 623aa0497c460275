"""`topk(fraction)`: only the largest values, with their positions (Aji and Heafield 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.buffer import MAX_VARINT_BYTES
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.stage import FLOATS, Form, Shape, Values
from featherfed.compression.traits import Traits

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TopK:
    """Keep the ceil(fraction * n) values largest in magnitude; the rest become zero."""

    fraction: float

    name: ClassVar[str] = "topk"
    traits: ClassVar[Traits] = Traits(error_feedback=True)

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, int | float) or not 0 < self.fraction <= 1:
            raise CodecError(f"topk needs a fraction above 0 and up to 1, got {self.fraction!r}")
        object.__setattr__(self, "fraction", float(self.fraction))  # topk(1) is topk(1.0)

    @property
    def output(self) -> Form:
        """Floats."""
        return FLOATS

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return the kept values in order of position; the side information is their gaps."""
        flat = x.ravel()
        k = self.count(x.shape)
        if k == 0:
            return flat, b""
        kept = np.sort(np.argpartition(-np.abs(flat), k - 1)[:k])
        return flat[kept], _encode_gaps(kept)

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return zeros with `values` at the positions encoded in `side`."""
        size = math.prod(shape)
        out = np.zeros(size, np.float32)
        out[_decode_gaps(side, len(values), size)] = values
        return out.reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return how many values are kept of `shape`."""
        return math.ceil(self.fraction * math.prod(shape))

    def side_limit(self, shape: Shape) -> int:
        """Return the size of the longest list of gaps."""
        return MAX_VARINT_BYTES * self.count(shape)


def _encode_gaps(positions: Positions) -> bytes:
    """Return the distance of each position from the one before it, less one, as varints."""
    gaps: Positions = np.diff(positions, prepend=-1) - 1
    septets = (gaps[:, None] >> (7 * np.arange(MAX_VARINT_BYTES))) & 0x7F
    needed = 1 + np.sum([gaps >> (7 * i) > 0 for i in range(1, MAX_VARINT_BYTES)], axis=0)
    index = np.arange(MAX_VARINT_BYTES)
    septets |= np.where(index < needed[:, None] - 1, 0x80, 0)
    used: npt.NDArray[np.uint8] = septets[index < needed[:, None]].astype(np.uint8)
    return used.tobytes()


def _decode_gaps(side: bytes, count: int, size: int) -> Positions:
    """Return `count` rising positions below `size`, or raise WireError."""
    raw = np.frombuffer(side, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if len(ends) != count or (len(raw) and (not count or ends[-1] != len(raw) - 1)):
        raise WireError(f"topk needs {count} positions, got {len(ends)}")
    if not count:
        return np.zeros(0, np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > MAX_VARINT_BYTES:
        raise WireError(f"topk position is longer than {MAX_VARINT_BYTES} bytes")
    if ((raw[ends] == 0) & (lengths > 1)).any():
        raise WireError("topk position is not in its shortest form")
    place = np.arange(len(raw)) - np.repeat(starts, lengths)
    gaps = np.add.reduceat((raw & 0x7F).astype(np.int64) << (7 * place), starts)
    positions: Positions = np.cumsum(gaps + 1) - np.int64(1)
    if positions[-1] >= size:
        raise WireError(f"topk position {positions[-1]} is outside a tensor of {size} values")
    return positions
