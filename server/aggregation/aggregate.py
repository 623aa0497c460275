"""The protocol of a round's aggregate, whatever rule makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.exchange.noise import MeanNoise
from featherfed.compression.importance import Allocation


class Aggregate(Protocol):
    """Takes in updates one at a time, in order of slots; holds no more than it needs of each."""

    def add(self, update: WeightedUpdate) -> Sequence[Array]:
        """Add an update and return it decoded, float32 in manifest shapes.

        Raises WireError or CodecError if it does not decode.
        """

    def mean(self) -> list[Array]:
        """Return the aggregate of all updates added, float32 in manifest shapes."""

    def noise(self) -> MeanNoise | None:
        """Return the noise that codecs left in a weighted mean, None if it cannot be told."""

    def allocation(self) -> Allocation | None:
        """Return the importance of coordinates after this round, None if it is not known."""
