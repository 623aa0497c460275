"""Tensors of which only a few values were sent, without the zeros between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.importance import Integers
from featherfed.compression.stage import Shape


@dataclass(frozen=True)
class SparseTensor:
    """A float32 tensor that is zero but for its `values` at `positions`.

    `positions`: int64 indices into the flattened tensor, rising. No value is -0.0.
    """

    shape: Shape
    positions: Integers
    values: Array

    def dense(self) -> Array:
        """Return the tensor with its zeros."""
        flat = np.zeros(math.prod(self.shape), np.float32)
        flat[self.positions] = self.values
        return flat.reshape(self.shape)


Tensor = Array | SparseTensor
"""A tensor as an update holds it."""


def sparse_sum(shape: Shape, positions: Integers, values: Array) -> SparseTensor:
    """Return a tensor of zeros to which `values` were added, in order, at rising `positions`."""
    values = values + np.float32(0)  # makes 0.0 of -0.0
    again = np.flatnonzero(positions[1:] == positions[:-1]) + 1
    if again.size:
        begins = np.diff(again, prepend=-1) > 1
        firsts = (again[begins] - 1)[np.cumsum(begins) - 1]
        np.add.at(values, firsts, values[again])
        once = np.ones(len(values), np.bool_)
        once[again] = False
        positions, values = positions[once], values[once]
    return SparseTensor(shape, positions, values)


def dense(tensor: Tensor) -> Array:
    """Return a tensor with all its values."""
    return tensor.dense() if isinstance(tensor, SparseTensor) else tensor


def values_of(tensor: Tensor) -> Array:
    """Return the values of a tensor, without those that are zero because they were not sent."""
    return tensor.values if isinstance(tensor, SparseTensor) else tensor


def energy(tensor: Tensor) -> float:
    """Return the sum of the squares of a tensor's values, added up in float64."""
    flat = values_of(tensor).reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))  # without a copy in float64


def add_scaled(total: Array, factor: np.float32, tensor: Tensor) -> None:
    """Add `factor` times a tensor to `total`, in place; `total` holds no -0.0."""
    if isinstance(tensor, SparseTensor):
        np.add.at(total.reshape(-1), tensor.positions, factor * tensor.values)
    else:
        total += factor * tensor


class DenseView(Sequence[Array]):
    """Tensors with all their values, each made when it is read."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Array]:
        return map(dense, self._tensors)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | Sequence[Array]:
        if isinstance(index, slice):
            return DenseView(self._tensors[index])
        return dense(self._tensors[index])
