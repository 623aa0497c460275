"""Downloads on their way out: where they go on, and what they are in the ledger. Knows no gRPC."""

from __future__ import annotations

from dataclasses import replace

from featherfed.server.storage.records import Entry, Sent
from featherfed.server.storage.store import Store

_RETRY = {"transfer": "retry", "release": "release_retry"}
"""Ledger kinds of what was sent whole, and of what was sent again or broke off."""


class Download:
    """What one call sends of `data`, which begins at `begin`.

    What broke off is in the ledger as retry, until a later call sends the rest. Only what this
    server sent counts, whatever the client says that it has.
    """

    def __init__(
        self, store: Store, like: Sent, data: bytes, offset: int, again: bool = False
    ) -> None:
        """Go on at `offset` or before, if that much was sent of what is `like` this.

        `again`: the client was sent all of it, or as much by another way, in this round.
        """
        before = store.sent(like)
        self._store = store
        self._data = data
        self._had_all = bool(data) and before.payload_bytes == len(data)
        self._again = again or self._had_all
        self.begin = min(offset, before.payload_bytes)
        # Pro rata: what was sent and did not arrive stays a retry.
        carried = before.message_bytes * self.begin // max(1, before.payload_bytes)
        self._sent = replace(before, payload_bytes=self.begin, message_bytes=carried)
        self._counted = self._sent

    @property
    def data(self) -> memoryview:
        """What this call is to send."""
        return memoryview(self._data)[self.begin :]

    @property
    def whole(self) -> bool:
        """Whether all was sent, in this call and those before."""
        return self._sent.payload_bytes == len(self._data)

    @property
    def uncounted(self) -> int:
        """Bytes of payload that are not written down yet."""
        return self._sent.payload_bytes - self._counted.payload_bytes

    def add(self, payload_bytes: int, message_bytes: int) -> None:
        """Note that a message was sent."""
        self._sent = replace(
            self._sent,
            payload_bytes=self._sent.payload_bytes + payload_bytes,
            message_bytes=self._sent.message_bytes + message_bytes,
        )

    def count(self, *more: Entry, last: bool = False) -> None:
        """Write down what was sent since the last time, and `more`; with `last` it is over."""
        kind, sent, counted = self._sent.kind, self._sent, self._counted
        if last and self.whole and not self._again:
            entries = [self._entry(kind, sent.payload_bytes, sent.message_bytes)]
            if counted.message_bytes:
                gone = -counted.payload_bytes, -counted.message_bytes
                entries.append(self._entry(_RETRY[kind], *gone))
        else:
            new = self.uncounted, sent.message_bytes - counted.message_bytes
            entries = [self._entry(_RETRY[kind], *new)] if new[1] else []
        # What a client had whole stays so: its bytes are no retry that could be moved.
        self._store.count_sent(None if self._had_all else sent, *more, *entries)
        self._counted = sent

    def _entry(self, kind: str, payload_bytes: int, message_bytes: int) -> Entry:
        sent = self._sent
        return Entry(sent.round, sent.client, "downlink", kind, payload_bytes, message_bytes)
