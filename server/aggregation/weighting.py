"""How much each of a round's updates counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featherfed.compression.exchange.average import FULL_SHARE, WeightedUpdate
from featherfed.server.storage.records import AggregationRecord, JournaledUpdate


@dataclass(frozen=True)
class Weighting:
    """Weights and clip shares of a round's updates by client, as an aggregation rule decided.

    `weights`: what each weighs in the mean; `total`: the sum over all that count. `record`: what
    the run stores of it. `shares`: the share of each update that is kept, in units of
    1 / FULL_SHARE; 0 leaves an update out, and a client without a share keeps all. `outliers`:
    clients that are clipped or left out, and why.
    """

    weights: Mapping[str, int]
    total: int
    record: AggregationRecord
    shares: Mapping[str, int] = field(default_factory=dict)
    outliers: tuple[tuple[str, str], ...] = ()

    def weighted(self, update: JournaledUpdate) -> WeightedUpdate | None:
        """Return an update with its weight and share, None if it is left out."""
        assert update.payload is not None, "payloads are kept until the round is aggregated"
        share = self.shares.get(update.client, FULL_SHARE)
        if not share:
            return None
        weight = self.weights[update.client]
        return WeightedUpdate(update.slot, weight, update.codec, update.payload, share % FULL_SHARE)
