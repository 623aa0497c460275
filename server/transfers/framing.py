"""The size of a message on the wire, for the ledger."""

from __future__ import annotations

from google.protobuf.message import Message

FRAME_BYTES = 5
"""gRPC's prefix of every message: a compression flag and a length."""


def framed_size(message: Message) -> int:
    """Return the bytes of a message in its gRPC stream: frame prefix and serialised protobuf."""
    return FRAME_BYTES + message.ByteSize()
