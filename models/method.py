"""The optimisation method of a model and its parameter; needs no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from featherfed.proto.plan_terms import Method


@dataclass(frozen=True)
class Optimization:
    """A method and, for clustering, how many unique values a kernel may have (at least 2)."""

    method: Method = Method.NONE
    num_clusters: int = 16

    def __post_init__(self) -> None:
        if self.num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, got {self.num_clusters}")
