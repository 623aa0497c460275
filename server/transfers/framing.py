"""The bytes of messages on the wire, for the ledger."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message

from featherfed.server.storage.records import LedgerEntry

FRAME_BYTES = 5
"""gRPC's prefix of every message: a compression flag and a length."""


def framed_size(message: Message) -> int:
    """Return the bytes of a message in its gRPC stream: frame prefix and serialised protobuf."""
    return FRAME_BYTES + message.ByteSize()


def control_entries(
    round_: int, client: str, request: Message, reply: Message
) -> tuple[LedgerEntry, LedgerEntry]:
    """Return the ledger entries for a request and its reply that carry no payload."""
    return (
        LedgerEntry(round_, client, "uplink", "control", 0, framed_size(request)),
        LedgerEntry(round_, client, "downlink", "control", 0, framed_size(reply)),
    )


def message_digest(message: Message) -> bytes:
    """Return the SHA-256 of a message."""
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
