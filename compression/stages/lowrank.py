"""`lowrank(rank)`: a product of two narrow matrices (PowerSGD, Vogels et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.key import NO_KEY, Key
from featherfed.compression.stage import FLOATS, Form, Shape, Values
from featherfed.compression.traits import Traits

_ITERATIONS = 2
_START = Key.root(0).child("lowrank")


@dataclass(frozen=True)
class LowRank:
    """Approximate a tensor by a product of [rows, rank] and [rank, columns], its last axis.

    A tensor that would not become smaller is passed on unchanged.
    """

    rank: int

    name: ClassVar[str] = "lowrank"
    traits: ClassVar[Traits] = Traits(error_feedback=True)

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or not 1 <= self.rank <= 1024:
            raise CodecError(f"lowrank needs a rank of 1 to 1024, got {self.rank!r}")

    @property
    def output(self) -> Form:
        """Floats."""
        return FLOATS

    def encode(self, x: Array, key: Key = NO_KEY) -> tuple[Values, bytes]:
        """Return both factors, rank by rank, with columns of equal norm; no side information."""
        rows, columns = _matrix(x.shape)
        if not self._shrinks(x.shape):
            return x.ravel(), b""
        matrix = x.reshape(rows, columns).astype(np.float64)
        # Subspace iteration (Halko et al. 2011), from a start that makes equal input give equal
        # output on one machine.
        left = matrix @ _START.signs(columns * self.rank).reshape(columns, self.rank)
        for _ in range(_ITERATIONS):
            left = matrix @ (matrix.T @ np.linalg.qr(left)[0])
        left = np.linalg.qr(left)[0]
        right = matrix.T @ left
        balance = np.sqrt(np.linalg.norm(right, axis=0))
        right /= np.where(balance > 0, balance, 1)
        return np.concatenate([(left * balance).T.ravel(), right.T.ravel()]).astype(np.float32), b""

    def decode(self, values: Values, side: bytes, shape: Shape, key: Key = NO_KEY) -> Array:
        """Return the sum of the outer products."""
        if side:
            raise WireError(f"lowrank needs no side information, got {len(side)} bytes")
        if not self._shrinks(shape):
            return values.reshape(shape)
        rows, columns = _matrix(shape)
        left = values[: rows * self.rank].reshape(self.rank, rows)
        right = values[rows * self.rank :].reshape(self.rank, columns)
        out = np.zeros((rows, columns), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            # Not a matrix product: its order of additions differs between platforms.
            for u, v in zip(left, right, strict=True):
                out += u[:, None] * v
        return out.reshape(shape)

    def count(self, shape: Shape) -> int:
        """Return the size of both factors, or of `shape` if that is not larger."""
        rows, columns = _matrix(shape)
        return self.rank * (rows + columns) if self._shrinks(shape) else math.prod(shape)

    def side_limit(self, shape: Shape) -> int:
        """Return 0."""
        return 0

    def _shrinks(self, shape: Shape) -> bool:
        rows, columns = _matrix(shape)
        return len(shape) > 1 and self.rank * (rows + columns) < rows * columns


def _matrix(shape: Shape) -> tuple[int, int]:
    size = math.prod(shape)
    columns = shape[-1] if shape else 1
    return (size // columns if columns else 0), columns
