"""Collecting a round's updates to forward them to all clients."""

from __future__ import annotations

from featherfed.compression.exchange.average import MAX_UPDATES, WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import FULL_RATE, RoundContext
from featherfed.proto import federation_pb2 as pb

_LIMIT = 4  # bytes per parameter: a bundle larger than the float32 model is never the smallest


class BundleBuilder:
    """Builds the bundle of a round's updates, unless it is forbidden or grows too large."""

    def __init__(self, context: RoundContext, manifest: Manifest, allowed: bool) -> None:
        """`allowed`: whether clients may get each other's updates at all."""
        rate = context.server_rate % FULL_RATE  # the default of 0, which takes no byte, is 1.0
        self._limit = _LIMIT * manifest.num_values
        self._bundle = pb.Bundle(slots=context.slots, server_rate=rate) if allowed else None

    def add(self, update: WeightedUpdate) -> None:
        """Add one update as it was sent."""
        bundle = self._bundle
        if bundle is None or self._is_full(bundle):
            self._bundle = None
            return
        bundle.codec = bundle.codec or update.codec
        bundle.parts.add(
            slot=update.slot,
            num_examples=update.num_examples,
            codec="" if update.codec == bundle.codec else update.codec,
            payload=update.payload,
            clip=update.clip,
        )

    def _is_full(self, bundle: pb.Bundle) -> bool:
        return len(bundle.parts) == MAX_UPDATES or bundle.ByteSize() > self._limit

    def result(self) -> pb.Bundle | None:
        """Return the bundle, None if it is forbidden or too large."""
        return self._bundle
