"""How a model is optimised while it trains; needs no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from featherfed.proto.plan_terms import Method


@dataclass(frozen=True)
class Optimization:
    """The method and, for clustering, the number of unique values in a kernel (at least 2)."""

    method: Method = Method.NONE
    num_clusters: int = 16

    def __post_init__(self) -> None:
        if self.num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, got {self.num_clusters}")
