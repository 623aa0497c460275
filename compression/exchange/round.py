"""What everybody in a round derives alike: its key, its masks, its start, its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.context import Context
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import Masks, magnitude_masks, mask_weights
from featherfed.compression.importance import Allocation
from featherfed.compression.key import Key

FULL_STEP = 256
"""A server learning rate of one, in the 256ths that it is counted in."""


@dataclass(frozen=True)
class Round:
    """What everybody in a round knows: its key, its number of slots, its masks, and importance.

    `server_rate` is the server learning rate (Reddi et al. 2021) in 256ths: the share of the mean
    that trainable tensors take over. State that is not trained takes over all of it. `statistics`
    are the base's values of that state (`statistics_of`).
    """

    key: Key
    slots: int
    masks: Masks
    allocation: Allocation | None
    server_rate: int = FULL_STEP
    statistics: Array | None = None

    def context(self, slot: int) -> Context:
        """Return the context of the update from `slot`; beyond `slots` they are used again."""
        return Context(self.key, slot % self.slots, self.slots, self.allocation, self.statistics)


def statistics_of(manifest: Manifest, weights: Sequence[Array]) -> Array:
    """Return the values of all tensors that are not trained, float32 [n]."""
    state = [w.ravel() for s, w in zip(manifest, weights, strict=True) if s.role != "trainable"]
    return np.concatenate([*state, np.zeros(0, np.float32)])


def round_key(seed: int, round_: int) -> Key:
    """Return the randomness that everybody in a round shares."""
    return Key.root(seed).child("round", round_)


@dataclass(frozen=True)
class RoundStart:
    """What every client of a round starts from: a version's weights under that round's masks."""

    weights: list[Array]
    masks: Masks


def start_round(manifest: Manifest, weights: Sequence[Array], sparsity: float) -> RoundStart:
    """Return the masked weights; server and clients derive the same from the same version."""
    masks = magnitude_masks(manifest, weights, sparsity)
    return RoundStart(mask_weights(weights, masks), masks)
