"""The bytes that may be received at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused


class ReceiveQueue:
    """Limits the bytes of all updates that are being received; for one event loop."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of all updates together."""
        self._limit = limit
        self._reserved = 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes for the block; raise Refused if there is no room."""
        self.check(size)
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    def check(self, size: int) -> None:
        """Raise Refused unless `size` bytes have room; a single update always has."""
        if self._reserved and size and self._reserved + size > self._limit:
            raise Refused(
                pb.BUSY, f"updates of {self._reserved} bytes are coming in; wait a little"
            )
