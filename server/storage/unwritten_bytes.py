"""Ledger counts that wait in memory for the next transaction."""

from __future__ import annotations

import threading

Key = tuple[int, str, str, str]
"""Round, client, direction and kind."""

Counts = dict[Key, tuple[int, int]]
"""Payload and message bytes by key."""


class UnwrittenBytes:
    """Sums of bytes by key; safe to use from several threads, never waits for a disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counts = {}

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._counts)

    def add(self, counts: Counts) -> None:
        """Add bytes to the sums."""
        with self._lock:
            for key, (payload, message) in counts.items():
                before = self._counts.get(key, (0, 0))
                self._counts[key] = before[0] + payload, before[1] + message

    def take(self) -> Counts:
        """Return all sums and set them to zero; a caller that cannot write them adds them back."""
        with self._lock:
            taken, self._counts = self._counts, {}
            return taken

    def message_bytes(self, direction: str) -> int:
        """Return the sum of message bytes in one direction."""
        with self._lock:
            return sum(size for key, (_, size) in self._counts.items() if key[2] == direction)
