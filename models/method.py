"""How a model is optimised while it trains; needs no TensorFlow."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Method(enum.StrEnum):
    """What TFMOT does to the model in training."""

    NONE = "none"
    PRUNE = "prune"
    CLUSTER = "cluster"
    QAT = "qat"
    PRUNE_QAT = "prune+qat"

    @property
    def prunes(self) -> bool:
        """Whether rounds have masks."""
        return self in (Method.PRUNE, Method.PRUNE_QAT)

    @property
    def quantizes(self) -> bool:
        """Whether quantization ranges are trained and exchanged."""
        return self in (Method.QAT, Method.PRUNE_QAT)


@dataclass(frozen=True)
class Optimization:
    """The method and, for clustering, the number of unique values in a kernel (at least 2)."""

    method: Method = Method.NONE
    num_clusters: int = 16

    def __post_init__(self) -> None:
        if self.num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, got {self.num_clusters}")
