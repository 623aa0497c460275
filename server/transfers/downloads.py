"""Downloads: where each resumes, and which of their bytes count as retry."""

from __future__ import annotations

from featherfed.server.storage.records import OTHERS, DownloadKey, LedgerEntry, TransferredBytes
from featherfed.server.storage.store import Store

COUNTED_CHUNK_BYTES = 2**20
"""A download under way is counted in the ledger in chunks of this size."""

_RETRY = {"transfer": "retry", "release": "release_retry"}
"""Download kind -> ledger kind of bytes that were sent again or whose download broke off."""


class Download:
    """Counts what one call sends of `data`, from byte `begin` on.

    Bytes of a download that broke off count as retry until a later call sends the rest. Only bytes
    that this server sent count, whatever the client claims to have. What each of OTHERS was sent is
    not remembered: theirs resume where they say, and count by the call.
    """

    def __init__(
        self, store: Store, key: DownloadKey, data: bytes, offset: int, again: bool = False
    ) -> None:
        """Resume at `offset`, or at what this server already sent if that is less.

        `again`: the client has already downloaded a whole model in this round.
        """
        self._store = store
        self._key = key
        self._data = data
        self._remembered = key.client != OTHERS
        before = store.transfers.sent(key) if self._remembered else TransferredBytes(len(data))
        self._had_all = self._remembered and bool(data) and before.payload == len(data)
        self._again = again or self._had_all
        self.begin = min(offset, before.payload)
        # In proportion: message bytes of what was sent and did not arrive remain retry.
        resumed = before.message * self.begin // max(1, before.payload)
        self._sent = TransferredBytes(self.begin if self._remembered else 0, resumed)
        self._counted = self._sent

    @property
    def round(self) -> int:
        """The round that the bytes count in."""
        return self._key.round

    @property
    def data(self) -> memoryview:
        """The bytes that this call is to send."""
        return memoryview(self._data)[self.begin :]

    @property
    def _complete(self) -> bool:
        """Whether all was sent, in this call and those before."""
        before = 0 if self._remembered else self.begin
        return before + self._sent.payload == len(self._data)

    @property
    def uncounted(self) -> int:
        """Payload bytes sent that are not in the ledger yet."""
        return self._sent.payload - self._counted.payload

    def add(self, payload_bytes: int, message_bytes: int) -> None:
        """Record that a message was sent."""
        payload, message = self._sent
        self._sent = TransferredBytes(payload + payload_bytes, message + message_bytes)

    def count(self, *more: LedgerEntry, last: bool = False) -> TransferredBytes:
        """Count in the ledger what was sent since the last time, and `more`; return what was sent.

        `last`: the download has ended, whole or not. Call `settle` with the result once it is
        committed.
        """
        kind, sent, counted = self._key.kind, self._sent, self._counted
        if last and self._complete and not self._again:
            entries = [self._entry(kind, *sent)]
            if counted.message:
                entries.append(self._entry(_RETRY[kind], -counted.payload, -counted.message))
        else:
            new = self.uncounted, sent.message - counted.message
            entries = [self._entry(_RETRY[kind], *new)] if new[1] else []
        with self._store.transaction():
            self._store.ledger.count(*more, *entries)
            if self._remembered and not self._had_all:  # a complete download stays complete
                self._store.transfers.save_sent(self._key, sent)
        return sent

    def settle(self, counted: TransferredBytes) -> None:
        """Record what was counted."""
        self._counted = counted

    def _entry(self, kind: str, payload_bytes: int, message_bytes: int) -> LedgerEntry:
        key = self._key
        return LedgerEntry(key.round, key.client, "downlink", kind, payload_bytes, message_bytes)
