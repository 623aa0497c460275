"""Client-level differential privacy: DP-FedAvg (McMahan et al. 2018, "Learning Differentially
Private Recurrent Language Models") with an adaptive clipping norm (Andrew, Thakkar, McMahan and
Ramaswamy 2021, "Differentially Private Learning with Adaptive Clipping").

Every update is clipped to norm C, all clients weigh alike, and the mean of n of them gets Gaussian
noise of z * C / n. Neighbours differ in what one client adds to the sums: who took part, when, and
so n, are taken for public ("zero-out", Kairouz et al. 2021), and the server is trusted.

Sums and noise are integers, exact and drawn anew whenever a round is aggregated. Both are scaled so
that the noise always has the same deviation, which is what it is drawn with fastest. What follows
is computed from noisy integers and public numbers alone, in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.noise import MeanNoise
from featherfed.compression.exchange.round import RoundContext
from featherfed.compression.exchange.update import decode_update
from featherfed.compression.importance import Allocation
from featherfed.compression.registry import parse_codec
from featherfed.server.aggregation.discrete_gaussian import DiscreteGaussian
from featherfed.server.aggregation.weighting import Weighting
from featherfed.server.storage.records import AggregationRecord, UpdateNorms

RATE = 0.2
"""Learning rate at which C follows the quantile, as in the paper's experiments."""

_COUNT_NOISE = 1 / 20  # of n: the paper's noise of the count of updates within C

_MARGIN = 2.0**-20  # of C: more than the rounding of float64 adds to norm and scale


@dataclass(frozen=True)
class Mechanism:
    """The Gaussian mechanism of one round: noise on the mean of n updates clipped to norm C.

    `noise`: the multiplier z that the accountant sees. `clip`: C, an L2 norm. `quantile`: the
    quantile of the updates' norms that C follows, None for a fixed C; following it releases, with
    noise, how many norms are within C. `gaussian`: draws the noise.
    """

    noise: float
    clip: float
    n: int
    quantile: float | None
    gaussian: DiscreteGaussian = field(default_factory=DiscreteGaussian)

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

    @property
    def grid(self) -> float:
        """What one unit of the integer sums is worth; the noise of a sum has `gaussian`'s units."""
        return self.mean_noise * self.clip / self.gaussian.deviation

    def scale(self, norm: float) -> float:
        """Return the factor that clips an update of this L2 norm to C, and counts it in units."""
        return (1 - _MARGIN) * self.clip / max(norm, self.clip) / self.grid

    def next_clip(self, norms: Sequence[float]) -> float:
        """Return C for the next round, from the noisy share of `norms` that are within it."""
        if self.quantile is None:
            return self.clip
        # A client adds or takes one vote, which is as heavy as the noise allows.
        vote = math.floor(self.gaussian.deviation / (2 * self.count_noise))
        votes = sum(1 if norm <= self.clip else -1 for norm in norms)
        noisy = vote * votes + int(self.gaussian.draw(1)[0])
        share = noisy / (2 * vote * self.n) + 0.5
        return self.clip * math.exp(-RATE * (share - self.quantile))

    def weigh(self, norms: Mapping[str, UpdateNorms], epsilon: float) -> Weighting:
        """Give all updates the same weight; the mean clips them.

        Who was clipped, and how far, is not recorded: those figures have no noise.
        """
        after = self.next_clip([own.whole for own in norms.values()])
        record = AggregationRecord(clip=self.clip, next_clip=after, epsilon=epsilon)
        return Weighting(dict.fromkeys(norms, 1), self.n, record)


class PrivateMean:
    """The mean of a round's clipped updates with noise.

    Every call of `mean` draws other noise. Only one may be published: two could be averaged, and
    their noise with them. So a round is aggregated again only if its version was never stored.
    """

    def __init__(self, mechanism: Mechanism, manifest: Manifest, round_: RoundContext) -> None:
        self._mechanism = mechanism
        self._manifest = manifest
        self._round = round_
        self._totals = [np.zeros(spec.shape, np.int64) for spec in manifest]

    def add(self, update: WeightedUpdate) -> list[Array]:
        """Add an update and return it decoded; raise WireError or CodecError if that fails."""
        decoded = decode_update(
            parse_codec(update.codec),
            self._manifest,
            update.payload,
            masks=self._round.masks,
            context=self._round.for_slot(update.slot),
        )
        scale = self._mechanism.scale(_norm(decoded))
        for total, tensor in zip(self._totals, decoded, strict=True):
            # Rounded towards zero, so that no norm grows.
            total += (scale * tensor.astype(np.float64)).astype(np.int64)
        return decoded

    def mean(self) -> list[Array]:
        """Return the noisy mean, float32; what a mask removes is public, and stays zero."""
        worth = self._mechanism.grid / self._mechanism.n
        noisy = []
        for total, mask in zip(self._totals, self._round.masks, strict=True):
            both = total + self._mechanism.gaussian.draw(total.size).reshape(total.shape)
            values = (worth * both).astype(np.float32)
            noisy.append(values if mask is None else np.where(mask, values, np.float32(0)))
        return noisy

    def noise(self) -> MeanNoise | None:
        """Return None: it would be a figure without the noise that privacy takes."""
        return None

    def allocation(self) -> Allocation | None:
        """Return the importance known before: dense codecs report none."""
        return self._round.allocation


def _norm(update: Sequence[Array]) -> float:
    """Return the L2 norm of all values together, summed in float64."""
    return math.sqrt(sum(float(np.sum(np.square(t, dtype=np.float64))) for t in update))
