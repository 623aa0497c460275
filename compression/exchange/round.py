"""A round's initial weights and its shared context, derived alike by server and clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.context import Context
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import Masks, magnitude_masks, mask_weights
from featherfed.compression.importance import Allocation
from featherfed.compression.key import Key

FULL_RATE = 256
"""A server learning rate of 1.0 in units of 1/256."""
MAX_RATE = 2 * FULL_RATE
"""The largest server learning rate that clients follow."""


@dataclass(frozen=True)
class RoundContext:
    """What server and clients know of a round without sending it with the updates.

    `key`: the round's shared randomness. `slots`: the number of places for clients. `masks`: the
    round's pruning masks. `allocation`: importance of coordinates, None if nothing is known yet.
    `server_rate`: the server learning rate (Reddi et al. 2021) in units of 1 / FULL_RATE; it scales
    the mean of trainable tensors, not of others. `statistics`: the values before the round of all
    tensors that are not trained, float32 [n].
    """

    key: Key
    slots: int
    masks: Masks
    allocation: Allocation | None
    server_rate: int = FULL_RATE
    statistics: Array | None = None

    def for_slot(self, slot: int) -> Context:
        """Return the context of the update from `slot`, taken modulo `slots`."""
        return Context(self.key, slot % self.slots, self.slots, self.allocation, self.statistics)

    @property
    def for_mean(self) -> Context:
        """The context of the round's mean update, where the server encodes it."""
        return Context(self.key.child("mean"))


@dataclass(frozen=True)
class RoundStart:
    """The initial weights of a round: a model version under the round's pruning masks.

    `manifest`, `weights` and `masks` are of the tensors that the round changes, so they hold no
    frozen ones. `version`: the whole model's manifest and weights, None if nothing is frozen.
    """

    manifest: Manifest
    weights: list[Array]
    masks: Masks
    version: tuple[Manifest, Sequence[Array]] | None = None

    def complete(self, weights: Sequence[Array]) -> list[Array]:
        """Return the whole model of which these are the `weights` that the round changes."""
        if self.version is None:
            return list(weights)
        manifest, tensors = self.version
        return manifest.with_sent(tensors, weights)

    def changed_of(self, weights: Sequence[Array]) -> list[Array]:
        """Return those weights of a whole model that the round changes."""
        return list(weights) if self.version is None else self.version[0].sent_of(weights)

    @cached_property
    def largest(self) -> float:
        """The largest magnitude of a weight, 0 if there are none."""
        return float(np.max([np.abs(tensor).max(initial=0) for tensor in self.weights], initial=0))

    def context(
        self,
        seed: int,
        number: int,
        slots: int,
        allocation: Allocation | None,
        server_rate: int = FULL_RATE,
    ) -> RoundContext:
        """Return the context of round `number`, counted from 1, of the run with `seed`."""
        statistics = statistics_of(self.manifest, self.weights)
        key = round_key(seed, number)
        return RoundContext(key, slots, self.masks, allocation, server_rate, statistics)


def start_round(manifest: Manifest, weights: Sequence[Array], sparsity: float) -> RoundStart:
    """Return a round's masked initial weights for a target sparsity in [0, 1).

    `manifest` and `weights` are the whole model's.
    """
    sent, version = manifest.sent, None
    if sent is not manifest:
        version = manifest, weights
        weights = manifest.sent_of(weights)
    masks = magnitude_masks(sent, weights, sparsity)
    return RoundStart(sent, mask_weights(weights, masks), masks, version)


def statistics_of(manifest: Manifest, weights: Sequence[Array]) -> Array:
    """Return the values of all tensors that are not trained in one vector, float32 [n]."""
    state = [w.ravel() for s, w in zip(manifest, weights, strict=True) if s.role != "trainable"]
    return np.concatenate([*state, np.zeros(0, np.float32)])


def round_key(seed: int, number: int) -> Key:
    """Return the randomness that server and clients share in round `number` of a run."""
    return Key.root(seed).child("round", number)
