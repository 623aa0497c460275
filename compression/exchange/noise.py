"""How much noise the codecs of a round's updates leave in their mean.

A sketch decodes to the update plus noise that is zero in the mean, so its energy (sum of squares)
is the update's plus the noise's, and the codec tells them apart (`Decoded.noise`). Noise of
different clients counts in the mean with the squares of their weights, as if it were independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from featherfed.compression.exchange.manifest import Manifest, Role
from featherfed.compression.sparse import Tensor, energy


class MeanNoise(NamedTuple):
    """Energies (sums of squares) of a round's trainable tensors.

    `noise`: of the noise in the mean. `update`: of the clients' updates before encoding, in their
    weighted mean, above 0.
    """

    noise: float
    update: float

    @property
    def ratio(self) -> float:
        """How many times the update's energy the noise has."""
        return self.noise / self.update


class NoiseSum:
    """Adds up the noise of updates, each weighted as in their mean."""

    def __init__(self, manifest: Manifest) -> None:
        self._trainable = [spec.role is Role.TRAINABLE for spec in manifest]
        self._is_known = True
        self._noise = self._update = 0.0

    def add(
        self, tensors: Sequence[Tensor], noise: float | None, weight: float, share: float
    ) -> None:
        """Add a decoded update; `noise` is what its codec told.

        `weight`: its part of the mean. `share`: the factor that clipping scales it by.
        """
        if noise is None:
            self._is_known = False
        if not self._is_known or noise is None:
            return
        came = sum(energy(t) for t, own in zip(tensors, self._trainable, strict=True) if own)
        self._noise += (weight * share) ** 2 * noise
        self._update += weight * share**2 * (came - noise)

    def result(self) -> MeanNoise | None:
        """Return what was added, None if a codec told no noise, or no update moved anything."""
        if not self._is_known or not self._update > 0:
            return None
        return MeanNoise(max(0.0, self._noise), self._update)  # an estimate, so below 0 by chance
