"""Collecting a round's updates to forward them to all clients.

A bundle tells no more of its updates than they tell themselves: they have no names, coarse weights
and one codec, since a client that alone sends another one could be followed from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from featherfed.compression.buffer import varint
from featherfed.compression.exchange.average import MAX_UPDATES, WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import FULL_RATE, RoundContext
from featherfed.proto import federation_pb2 as pb

_TAG = 1  # byte before the length of each part
_LIMIT = 4  # bytes per parameter: a bundle larger than the float32 model is never the smallest


class RoundBundle(NamedTuple):
    """A round's updates as they are forwarded.

    `same_mean`: their coarse weights are in proportion to the exact ones, so each update's share of
    the mean, a quotient of whole numbers, is the same float, and so is every bit of the mean.
    """

    message: pb.Bundle
    same_mean: bool


class BundleBuilder:
    """Builds a round's bundle, unless it is forbidden, grows too large or mixes codecs."""

    def __init__(
        self, context: RoundContext, manifest: Manifest, weights: Mapping[str, int] | None
    ) -> None:
        """`weights`: of the forwarded updates by client, None if there must be no bundle."""
        # The default of 0, which takes no byte, is 1.0.
        rate = 0 if context.server_rate == FULL_RATE else context.server_rate
        self._limit = _LIMIT * manifest.num_values
        self._weights = weights or {}
        self._bundle = pb.Bundle(slots=context.slots, server_rate=rate) if weights else None
        self._size = 0
        self._coarseness: set[Fraction] = set()

    def add(self, client: str, update: WeightedUpdate) -> None:
        """Add one client's update as it was sent."""
        bundle = self._bundle
        if bundle is None:
            return
        if not bundle.parts:
            bundle.codec = update.codec
            self._size = bundle.ByteSize()
        if update.codec != bundle.codec or self._is_full(bundle):
            self._bundle = None
            return
        weight = self._weights[client]
        self._coarseness.add(Fraction(weight, update.num_examples))
        part = bundle.parts.add(
            slot=update.slot,
            num_examples=weight,
            payload=update.payload,
            clip=update.clip,
        )
        size = part.ByteSize()
        self._size += _TAG + len(varint(size)) + size  # ByteSize of it all would be quadratic

    def _is_full(self, bundle: pb.Bundle) -> bool:
        return len(bundle.parts) == MAX_UPDATES or self._size > self._limit

    def result(self) -> RoundBundle | None:
        """Return the bundle, None if there is none."""
        if self._bundle is None:
            return None
        return RoundBundle(self._bundle, same_mean=len(self._coarseness) <= 1)


def bundled_updates(bundle: pb.Bundle) -> list[WeightedUpdate]:
    """Return a bundle's updates in its order, as clients read them."""
    return [
        WeightedUpdate(part.slot, part.num_examples, bundle.codec, part.payload, part.clip)
        for part in bundle.parts
    ]
