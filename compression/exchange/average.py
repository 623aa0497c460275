"""FedAvg (McMahan et al. 2017): the mean of the clients' updates weighted by their examples.

The server and, where updates are forwarded, every client average with this code alone, in order of
slots: the order fixes the last bit of the result.

An update whose norm is far from the others' is scaled down first (Sun et al. 2019, "Can You Really
Backdoor Federated Learning?"); by how much the server decides, and tells with what it forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import Mask
from featherfed.compression.exchange.round import FULL_RATE, RoundContext
from featherfed.compression.exchange.update import (
    coverage,
    decode_update,
    read_report,
    sketched_shapes,
)
from featherfed.compression.importance import Allocation, Report, merge_reports
from featherfed.compression.registry import parse_codec

FULL_SHARE = 65536
"""1.0 in units of 1/65536 (clip shares are fixed-point)."""


@dataclass(frozen=True)
class WeightedUpdate:
    """One update as it was sent, with its weight in the mean.

    `clip`: what clipping scales it by, in units of 1 / FULL_SHARE; 0 means that it is not clipped.
    """

    slot: int
    num_examples: int
    codec: str
    payload: bytes
    clip: int = 0


class Average:
    """A mean under way: float32 totals of one model, whatever the number of clients."""

    def __init__(self, manifest: Manifest, round_: RoundContext, num_examples: int) -> None:
        """Begin with nothing; `num_examples` are those of all updates that will be added."""
        self._manifest = manifest
        self._round = round_
        self._num_examples = num_examples
        self._totals = [np.zeros(spec.shape, np.float32) for spec in manifest]
        self._shares: list[Array | None] = [None] * len(manifest)
        self._weight = np.float32(0)
        self._reports: list[Report] = []

    def add(self, part: WeightedUpdate) -> list[Array]:
        """Add an update and return it decoded; raise WireError or CodecError if that fails."""
        codec = parse_codec(part.codec)
        manifest, masks, context = self._manifest, self._round.masks, self._round.update(part.slot)
        update = decode_update(codec, manifest, part.payload, masks=masks, context=context)
        report = read_report(codec, manifest, part.payload, masks=masks, context=context)
        if report is not None:
            self._reports.append(report)
        weight = np.float32(part.num_examples / self._num_examples)
        taken = weight * np.float32(part.clip / FULL_SHARE) if part.clip else weight
        covered = coverage(codec, manifest, context)
        for i, (total, tensor) in enumerate(zip(self._totals, update, strict=True)):
            total += taken * tensor
            self._share(i, covered[i], weight)
        self._weight += weight
        return update

    def _share(self, number: int, covered: Mask | None, weight: np.float32) -> None:
        share = self._shares[number]
        if covered is not None and share is None:
            share = self._shares[number] = np.full(covered.shape, self._weight, np.float32)
        if share is not None:
            share += weight if covered is None else weight * covered

    def mean(self) -> list[Array]:
        """Return the mean at the server's rate: of a tensor sent in parts, over those who sent."""
        mean = [
            total
            if share is None
            else np.divide(total, np.where(share > 0, share, 1), dtype=np.float32)
            for total, share in zip(self._totals, self._shares, strict=True)
        ]
        if self._round.server_rate == FULL_RATE:
            return mean
        rate = np.float32(self._round.server_rate / FULL_RATE)
        return [
            rate * tensor if spec.role == "trainable" else tensor
            for spec, tensor in zip(self._manifest, mean, strict=True)
        ]

    def allocation(self) -> Allocation | None:
        """Return what is known of importance after this round."""
        return merge_reports(self._round.allocation, self._reports, sketched_shapes(self._manifest))


def average(manifest: Manifest, round_: RoundContext, parts: Sequence[WeightedUpdate]) -> Average:
    """Return the average of `parts`, which must be in order of their slots."""
    under_way = Average(manifest, round_, sum(part.num_examples for part in parts))
    for part in parts:
        under_way.add(part)
    return under_way
