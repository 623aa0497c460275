"""FedAvg (McMahan et al. 2017): the mean of the clients' updates weighted by their examples.

The server and, where updates are forwarded, every client average with this code, in order of slots:
the order decides the last bits of the result.

The server may scale down an update that is much larger than the others (norm clipping, Sun et al.
2019, "Can You Really Backdoor Federated Learning?"); the factor is forwarded with the update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import Mask
from featherfed.compression.exchange.noise import MeanNoise, NoiseSum
from featherfed.compression.exchange.round import FULL_RATE, RoundContext
from featherfed.compression.exchange.update import (
    ReceivedUpdate,
    receive_update,
    sketched_shapes,
)
from featherfed.compression.importance import Allocation, Report, merge_reports
from featherfed.compression.registry import parse_codec
from featherfed.compression.sparse import DenseView, add_scaled

MAX_UPDATES = 10_000
"""Most updates of a bundle: it is averaged again by every client, which takes time for each."""
FULL_SHARE = 65536
"""1.0 in units of 1/65536 (clip shares are fixed-point)."""


@dataclass(frozen=True)
class WeightedUpdate:
    """One update as it was sent, with its weight in the mean.

    `clip`: the factor that clipping scales it by, in units of 1 / FULL_SHARE; 0 if it is not
    clipped.
    """

    slot: int
    num_examples: int
    codec: str
    payload: bytes
    clip: int = 0


class Average:
    """A running weighted mean of updates; holds one model in float32, however many are added."""

    def __init__(
        self,
        manifest: Manifest,
        round_: RoundContext,
        num_examples: int,
        receive: Callable[[WeightedUpdate], ReceivedUpdate] | None = None,
        *,
        measures_noise: bool = True,
    ) -> None:
        """Start empty; `num_examples` is the sum over all updates that will be added.

        `receive`: what decodes them in place of `receive_update`, to the same. `measures_noise`:
        False for those who need the mean alone.
        """
        self._manifest = manifest
        self._round = round_
        self._num_examples = num_examples
        self._receive = receive or self._decode
        self._totals = [np.zeros(spec.shape, np.float32) for spec in manifest]
        # By tensor, the weight of the updates that sent each value; None where all sent all.
        self._sent: list[Array | None] = [None] * len(manifest)
        self._weight = np.float32(0)
        self._reports: list[Report] = []
        self._noise = NoiseSum(manifest) if measures_noise else None

    def add(self, part: WeightedUpdate) -> Sequence[Array]:
        """Add an update and return it decoded; raise WireError or CodecError if it is invalid."""
        update = self._receive(part)
        if update.report is not None:
            self._reports.append(update.report)
        weight = np.float32(part.num_examples / self._num_examples)
        if self._noise is not None:
            share = part.clip / FULL_SHARE if part.clip else 1.0
            exact = part.num_examples / self._num_examples
            self._noise.add(update.tensors, update.noise, exact, share)
        clipped = weight * np.float32(part.clip / FULL_SHARE) if part.clip else weight
        for i, (total, tensor) in enumerate(zip(self._totals, update.tensors, strict=True)):
            add_scaled(total, clipped, tensor)
            self._add_coverage(i, update.covered[i], weight)
        self._weight += weight
        return DenseView(update.tensors)

    def _decode(self, part: WeightedUpdate) -> ReceivedUpdate:
        codec, context = parse_codec(part.codec), self._round.for_slot(part.slot)
        masks = self._round.masks
        return receive_update(codec, self._manifest, part.payload, masks=masks, context=context)

    def _add_coverage(self, number: int, covered: Mask | None, weight: np.float32) -> None:
        """Add an update's weight to the `covered` values of tensor `number`; None: to all."""
        sent = self._sent[number]
        if covered is not None and sent is None:
            sent = self._sent[number] = np.full(covered.shape, self._weight, np.float32)
        if sent is not None:
            sent += weight if covered is None else weight * covered

    def mean(self) -> list[Array]:
        """Return the mean update, its trainable tensors times the server's learning rate.

        Values that only some clients sent are averaged over those; values that none sent are zero.
        """
        mean = [
            total
            if sent is None
            else np.divide(total, np.where(sent > 0, sent, 1), dtype=np.float32)
            for total, sent in zip(self._totals, self._sent, strict=True)
        ]
        if self._round.server_rate == FULL_RATE:
            return mean
        rate = np.float32(self._round.server_rate / FULL_RATE)
        return [
            rate * tensor if spec.role == "trainable" else tensor
            for spec, tensor in zip(self._manifest, mean, strict=True)
        ]

    def noise(self) -> MeanNoise | None:
        """Return the noise that codecs left in the mean, None if it cannot be told."""
        return None if self._noise is None else self._noise.result()

    def allocation(self) -> Allocation | None:
        """Return the importance for the next round, merged from the reports in the updates."""
        return merge_reports(self._round.allocation, self._reports, sketched_shapes(self._manifest))


def average(
    manifest: Manifest,
    round_: RoundContext,
    parts: Sequence[WeightedUpdate],
    on_part: Callable[[], None] = lambda: None,
) -> Average:
    """Return the average of `parts`, which must be in order of their slots.

    `on_part` is called before each; what it raises ends the work.
    """
    total = sum(part.num_examples for part in parts)
    result = Average(manifest, round_, total, measures_noise=False)  # clients need no more
    for part in parts:
        on_part()
        result.add(part)
    return result
