"""What every aggregation rule offers."""

from __future__ import annotations

from typing import Protocol

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.importance import Allocation


class Mean(Protocol):
    """An aggregate under way, whatever rule makes it."""

    def add(self, part: WeightedUpdate) -> list[Array]:
        """Add an update and return it decoded, float32 in manifest shapes."""

    def mean(self) -> list[Array]:
        """Return the aggregate, float32 in manifest shapes."""

    def allocation(self) -> Allocation | None:
        """Return what is known of importance after this round."""
