"""The manifest: name, shape, role and initial value of every float32 tensor of a model.

The server defines it. Every size that a decoder allocates comes from it, never from a message.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from featherfed.compression.arrays import Array

T = TypeVar("T")


class Role(enum.StrEnum):
    """How a tensor is treated; integers, counters and seeds are not exchanged at all."""

    TRAINABLE = "trainable"
    """Trained, and encoded by the update codec."""
    STATISTIC = "statistic"
    """Not trained, but averaged, such as moving means and quantization ranges."""
    NONNEGATIVE = "nonnegative"
    """A statistic that must not fall below zero, such as moving variances."""
    FROZEN = "frozen"
    """Never changed by a round: equal in all versions, and sent with the first model alone."""


@dataclass(frozen=True)
class Fill:
    """Initially `value` everywhere."""

    value: float


@dataclass(frozen=True)
class Uniform:
    """Initially random, uniform in [-limit, limit)."""

    limit: float


Initial = Fill | Uniform


@dataclass(frozen=True)
class TensorSpec:
    """One exchanged float32 tensor; pruning masks apply to it if it is `prunable`."""

    name: str
    shape: tuple[int, ...]
    role: Role = Role.TRAINABLE
    initial: Initial = field(default_factory=lambda: Fill(0.0))
    prunable: bool = False
    momentum: float = 0.0
    """Of a moving average of batches: the share of its old value that it keeps in a step of
    training; 0 for other tensors. It tells how to calibrate the tensor, not what is exchanged."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """A model's tensors in order; peers with equal `digest` exchange the same tensors."""

    specs: tuple[TensorSpec, ...]

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    @cached_property
    def num_values(self) -> int:
        """Number of float32 values in all tensors."""
        return sum(spec.size for spec in self.specs)

    @cached_property
    def sent(self) -> Manifest:
        """The tensors that rounds change and send: all but the frozen; itself if none is."""
        specs = tuple(spec for spec in self.specs if spec.role is not Role.FROZEN)
        return self if len(specs) == len(self.specs) else Manifest(specs)

    @cached_property
    def thawed(self) -> Manifest:
        """All tensors, the frozen ones as statistics: a snapshot's; itself if none is frozen."""
        if self.sent is self:
            return self
        return Manifest(
            tuple(
                replace(spec, role=Role.STATISTIC) if spec.role is Role.FROZEN else spec
                for spec in self.specs
            )
        )

    @cached_property
    def calibrates(self) -> bool:
        """Whether any tensor is a moving average that calibration measures anew."""
        return any(spec.momentum for spec in self.specs)

    def sent_of(self, tensors: Sequence[T]) -> list[T]:
        """Return those of `tensors`, one for each of the manifest's, that `sent` lists."""
        both = zip(self.specs, tensors, strict=True)
        return [tensor for spec, tensor in both if spec.role is not Role.FROZEN]

    def with_sent(self, tensors: Sequence[T], sent: Sequence[T]) -> list[T]:
        """Return `tensors` with those that `sent` lists replaced; the frozen ones stay."""
        new = iter(sent)
        both = zip(self.specs, tensors, strict=True)
        whole = [tensor if spec.role is Role.FROZEN else next(new) for spec, tensor in both]
        if any(True for _ in new):
            raise ValueError(f"{len(sent)} tensors for the {len(self.sent)} that are sent")
        return whole

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of all tensors' fields, but for their momentum."""
        fields = [asdict(spec) for spec in self.specs]
        for each in fields:
            del each["momentum"]
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).digest()

    def split(self, values: Array) -> list[Array]:
        """Return float32 [num_values] as tensors of the manifest's shapes."""
        ends = np.cumsum([spec.size for spec in self.specs])
        return [
            values[end - spec.size : end].reshape(spec.shape)
            for end, spec in zip(ends, self.specs, strict=True)
        ]

    def check(self, tensors: Sequence[Array]) -> None:
        """Raise ValueError unless `tensors` have the manifest's number, shapes and dtype."""
        if len(tensors) != len(self.specs):
            raise ValueError(f"expected {len(self.specs)} tensors, got {len(tensors)}")
        for spec, tensor in zip(self.specs, tensors, strict=True):
            if tensor.shape != spec.shape or tensor.dtype != np.float32:
                raise ValueError(
                    f"tensor {spec.name!r} must be float32 of shape {spec.shape}, "
                    f"got {tensor.dtype} of shape {tensor.shape}"
                )


def weights_digest(tensors: Sequence[Array]) -> bytes:
    """SHA-256 (32 bytes) of the canonical weights: little-endian float32, in manifest order."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    return sha.digest()
