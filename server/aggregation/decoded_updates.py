"""Updates of a round as they were decoded to be checked, for their mean."""

from __future__ import annotations

import threading

from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import RoundContext
from featherfed.compression.exchange.update import ReceivedUpdate, receive_update
from featherfed.compression.registry import parse_codec
from featherfed.compression.sparse import SparseTensor

KEPT_BYTES = 2**23
"""Memory for decoded updates; those beyond it are decoded again."""
_TENSOR_BYTES = 512  # more than the objects around a tensor's values take


class DecodedUpdates:
    """Decodes updates, and keeps what small ones gave; safe to use from several threads.

    Nothing is decided by what is kept: equal payloads of one round decode to equal updates.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._lock = threading.Lock()
        self._round: RoundContext | None = None
        self._kept: dict[tuple[int, str, bytes], ReceivedUpdate] = {}
        self._bytes = 0

    def receive(self, round_: RoundContext, update: WeightedUpdate) -> ReceivedUpdate:
        """Return what an update of a round says; its arrays are shared, so change none.

        Raises WireError or CodecError if it does not decode.
        """
        key = update.slot, update.codec, update.payload
        with self._lock:
            found = self._kept.get(key) if round_ is self._round else None
        if found is None:
            codec, context = parse_codec(update.codec), round_.for_slot(update.slot)
            found = receive_update(
                codec, self._manifest, update.payload, masks=round_.masks, context=context
            )
            self._keep(round_, key, found)
        return found

    def forget(self) -> None:
        """Free the memory: the round is aggregated."""
        with self._lock:
            self._round, self._kept, self._bytes = None, {}, 0

    def _keep(
        self, round_: RoundContext, key: tuple[int, str, bytes], update: ReceivedUpdate
    ) -> None:
        size = len(key[2]) + sum(
            _TENSOR_BYTES
            + (t.positions.nbytes + t.values.nbytes if isinstance(t, SparseTensor) else t.nbytes)
            for t in update.tensors
        )
        with self._lock:
            if round_ is not self._round:
                self._round, self._kept, self._bytes = round_, {}, 0
            if key not in self._kept and self._bytes + size <= KEPT_BYTES:
                self._kept[key] = update
                self._bytes += size
