"""Random rotation: signs and Hadamard transforms over blocks whose sizes are powers of two.

After it every value of a block is a sum of all others with random signs, hence roughly normally
distributed, and one bit per value keeps most of the information (DRIVE, Vargaftik et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.key import Key

MIN_BLOCK = 64
MAX_BLOCK = 4096
"""Smallest and largest block, in values; a tensor is cut into blocks, largest first."""


def padded(count: int) -> int:
    """Return `count` rounded up to a multiple of MIN_BLOCK."""
    return -(-count // MIN_BLOCK) * MIN_BLOCK


def rotate(x: Array, key: Key) -> Array:
    """Return float32 [n] `x` rotated, float32 [padded(n)] of the same Euclidean norm."""
    flat = np.zeros(padded(x.size), np.float32)
    flat[: x.size] = x.ravel()
    flat *= key.signs(flat.size)
    return _transform(flat, orthonormal=True)


def rotate_back(z: Array, key: Key) -> Array:
    """Return float32 [padded(n)], sqrt(block size) times the inverse of `rotate`.

    Where `z` holds whole numbers (signs, levels) below 2**11 every sum is exact, hence the same on
    every platform. Multiply by `block_scales` for the inverse itself.
    """
    back = _transform(np.ascontiguousarray(z, np.float32), orthonormal=False)
    back *= key.signs(z.size)
    return back


def block_scales(count: int) -> Array:
    """Return float32 [padded(count)]: for each value 1 / sqrt(size of its block)."""
    out = np.empty(padded(count), np.float32)
    for start, size, number in _runs(out.size):
        out[start : start + size * number] = np.float32(size**-0.5)
    return out


def _runs(total: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, block size, number of blocks) that cover `total` values, largest first."""
    start, size = 0, MAX_BLOCK
    while start < total:
        number = (total - start) // size
        if number:
            yield start, size, number
            start += size * number
        size //= 2


def _transform(flat: Array, *, orthonormal: bool) -> Array:
    out = np.empty_like(flat)
    for start, size, number in _runs(flat.size):
        end = start + size * number
        # H of size a*b is the Kronecker product of H of size a and of size b: two small products.
        left, right = _matrix(size // MIN_BLOCK), _matrix(MIN_BLOCK)
        blocks = left @ (flat[start:end].reshape(number, size // MIN_BLOCK, MIN_BLOCK) @ right)
        out[start:end] = blocks.ravel()
        if orthonormal:
            out[start:end] *= np.float32(size**-0.5)
    return out


@cache
def _matrix(size: int) -> Array:
    """Return the Hadamard matrix in Sylvester's order, float32 [size, size] of +1 and -1."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
