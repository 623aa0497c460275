"""Client-level differential privacy: DP-FedAvg (McMahan et al. 2018, "Learning Differentially
Private Recurrent Language Models") with an adaptive clipping norm (Andrew, Thakkar, McMahan and
Ramaswamy 2021, "Differentially Private Learning with Adaptive Clipping").

Every update is clipped to norm C, all clients weigh alike, and the mean of n of them gets Gaussian
noise of z * C / n. Neighbours differ in what one client adds to the sums: who took part, when, and
so n, are taken for public ("zero-out", Kairouz et al. 2021), and the server is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import Average, WeightedUpdate
from featherfed.compression.exchange.masks import Masks
from featherfed.compression.importance import Allocation
from featherfed.compression.key import Key
from featherfed.server.aggregation.clipping import clip_share
from featherfed.server.aggregation.weighting import Weighting
from featherfed.server.storage.records import AggregationRecord, UpdateNorms

RATE = 0.2
"""Learning rate at which C follows the quantile, as in the paper's experiments."""

_COUNT_NOISE = 1 / 20  # of n: the paper's noise of the count of updates within C


@dataclass(frozen=True)
class Mechanism:
    """The Gaussian mechanism of one round: noise on the mean of n updates clipped to norm C.

    `noise`: the multiplier z that the accountant sees. `clip`: C, an L2 norm. `quantile`: the
    quantile of the updates' norms that C follows, None for a fixed C; following it releases, with
    noise, how many norms are within C. `key`: the randomness of the noise.
    """

    noise: float
    clip: float
    n: int
    quantile: float | None
    key: Key

    @property
    def count_noise(self) -> float:
        """Standard deviation of the count of updates within C.

        A twentieth of n, as in the paper, but at least z: for few clients that would leave nothing
        for the mean. It then costs the mean 15 % more noise.
        """
        return max(_COUNT_NOISE * self.n, self.noise)

    @property
    def mean_noise(self) -> float:
        """The multiplier for the mean: with the count's noise, both together cost what z costs."""
        if self.quantile is None:
            return self.noise
        return 1 / math.sqrt(self.noise**-2 - (2 * self.count_noise) ** -2)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on every value of the mean."""
        return self.mean_noise * self.clip / self.n

    def next_clip(self, norms: Sequence[float]) -> float:
        """Return C for the next round, from the noisy share of `norms` that are within it."""
        if self.quantile is None:
            return self.clip
        centred = sum(norm <= self.clip for norm in norms) - len(norms) / 2
        noisy = centred + self.count_noise * float(_normal(self.key.child("count"), 1)[0])
        return self.clip * math.exp(-RATE * (noisy / self.n + 0.5 - self.quantile))

    def weigh(self, norms: Mapping[str, UpdateNorms], epsilon: float) -> Weighting:
        """Clip each update to C, with equal weights.

        Who was clipped, and how far, is not recorded: those figures have no noise.
        """
        shares = {client: clip_share(own.whole, self.clip) for client, own in norms.items()}
        after = self.next_clip([own.whole for own in norms.values()])
        record = AggregationRecord(clip=self.clip, next_clip=after, epsilon=epsilon)
        return Weighting(dict.fromkeys(norms, 1), self.n, record, shares)


class PrivateMean:
    """The mean of a round's updates with noise, drawn from the round's key.

    A repeated call, or one after a restart, draws the same noise: two draws for one round could be
    averaged by whoever saw both.
    """

    def __init__(self, mechanism: Mechanism, average: Average, masks: Masks) -> None:
        self._mechanism = mechanism
        self._average = average
        self._masks = masks

    def add(self, update: WeightedUpdate) -> list[Array]:
        """Add an update and return it decoded; raise WireError or CodecError if that fails."""
        return self._average.add(update)

    def mean(self) -> list[Array]:
        """Return the noisy mean, float32; what a mask removes is public, and stays zero."""
        key = self._mechanism.key.child("mean")
        noisy = []
        for i, (tensor, mask) in enumerate(zip(self._average.mean(), self._masks, strict=True)):
            noise = self._mechanism.deviation * _normal(key.child(i), tensor.size)
            both = tensor + noise.astype(np.float32).reshape(tensor.shape)
            noisy.append(both if mask is None else np.where(mask, both, np.float32(0)))
        return noisy

    def allocation(self) -> Allocation | None:
        """Return the importance known before: dense codecs report none."""
        return self._average.allocation()


def _normal(key: Key, count: int) -> npt.NDArray[np.float64]:
    """Return `count` standard normal values of the stream that `key` names."""
    pair = np.frombuffer(key.bits, "<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=pair)).standard_normal(count)
