"""The envelope around every compressed payload: magic, version, length, body, checksum.

Normative text: docs/wire-format.md. The checksum also covers the context that both sides must
agree on without sending it (codec text and manifest), so a payload decoded with another codec or
for another model fails here instead of giving wrong numbers.
"""

from __future__ import annotations

import struct
import zlib

from featherfed.compression.buffer import Reader, varint
from featherfed.compression.errors import WireError

MAGIC = b"ff"
VERSION = 1
_CHECKSUM = struct.Struct("<I")


def seal(body: bytes, context: bytes) -> bytes:
    """Return `body` in an envelope whose checksum also covers `context`."""
    head = MAGIC + bytes([VERSION]) + varint(len(body))
    checksum = zlib.crc32(body, zlib.crc32(head, zlib.crc32(context)))
    return b"".join([head, body, _CHECKSUM.pack(checksum)])


def unseal(payload: bytes, context: bytes) -> memoryview:
    """Return the body of an envelope, as a part of `payload`.

    Raises WireError if it is damaged or for another `context`.
    """
    reader = Reader(payload)
    if reader.take(len(MAGIC)) != MAGIC:
        raise WireError("not a featherfed payload: wrong magic")
    version = reader.take(1)[0]
    if version != VERSION:
        raise WireError(f"wire format version {version} is not supported; this is {VERSION}")
    length = reader.varint()
    if length + _CHECKSUM.size != reader.remaining:
        raise WireError(f"body of {length} bytes announced, {reader.remaining} bytes left")
    body = reader.view(length)
    (checksum,) = _CHECKSUM.unpack(reader.take(_CHECKSUM.size))
    if checksum != zlib.crc32(memoryview(payload)[: -_CHECKSUM.size], zlib.crc32(context)):
        raise WireError("checksum mismatch: damaged, or made with another codec or model")
    return body
