"""How much noise the codecs of a round's updates leave in their mean.

A sketch decodes to the update plus noise that is zero in the mean, so its energy (sum of squares)
is the update's plus the noise's, and the codec tells them apart (`Decoded.noise`). Noise of
different clients counts in the mean with the squares of their weights, as if it were independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.layout import SMALL
from featherfed.compression.exchange.manifest import Manifest, Role
from featherfed.compression.exchange.round import FULL_RATE
from featherfed.compression.sparse import Tensor, energy

_TINY = 1e-30


class MeanNoise(NamedTuple):
    """Energies (sums of squares) of a round's trainable tensors.

    `noise`: of the noise in the mean. `update`: of the clients' updates before encoding, in their
    weighted mean, above 0. `tensors`: of the noise in each tensor's mean, 0 of those not trained,
    as if every client's were that of the median client, whom a few liars cannot move; empty where
    it is not known.
    """

    noise: float
    update: float
    tensors: tuple[float, ...] = ()

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
        self._squared_weights = 0.0
        self._by_client: list[npt.NDArray[np.float64]] = []

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
        both = zip(tensors, self._trainable, strict=True)
        energies = [energy(tensor) if own else 0.0 for tensor, own in both]
        came = sum(energies)
        self._noise += (weight * share) ** 2 * noise
        # Where most of what came is noise, the update hardly shifts what is in each tensor.
        part = share**2 * max(0.0, noise) / came if came > 0 else 0.0
        self._squared_weights += weight**2
        self._by_client.append(np.array(energies) * part)
        self._update += weight * share**2 * (came - noise)

    def result(self) -> MeanNoise | None:
        """Return what was added, None if a codec told no noise, or no update moved anything."""
        if not self._is_known or not self._update > 0:
            return None
        middle = np.median(np.stack(self._by_client), axis=0) * self._squared_weights
        # An estimate, so below 0 by chance.
        return MeanNoise(max(0.0, self._noise), self._update, tuple(map(float, middle)))


def weight_noise(
    manifest: Manifest, weights: Sequence[Array], noise: MeanNoise, server_rate: int
) -> float:
    """Return the noise of a round's mean relative to the `weights` that it led to.

    The sum, over trainable tensors of SMALL values or more, of the noise's energy divided by the
    tensor's. `server_rate`: in units of 1 / FULL_RATE; noise and update are scaled by it alike.
    """
    scale = (server_rate / FULL_RATE) ** 2
    return sum(
        scale * own / max(float(np.square(tensor, dtype=np.float64).sum()), _TINY)
        for spec, tensor, own in zip(manifest, weights, noise.tensors, strict=True)
        if spec.role is Role.TRAINABLE and spec.size >= SMALL and own
    )
