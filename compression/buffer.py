"""Reading a peer's bytes without ever reading past their end, and LEB128 varints."""

from __future__ import annotations

from featherfed.compression.errors import WireError

MAX_VARINT_BYTES = 5
"""Enough for 2**35 - 1, far above any size a manifest declares."""


def varint(value: int) -> bytes:
    """Return `value` (0 or more) as a little-endian base-128 varint (LEB128)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """A cursor over bytes; every read that would pass the end raises WireError."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def remaining(self) -> int:
        """Number of bytes not yet read."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        return bytes(self.view(count))

    def view(self, count: int) -> memoryview:
        """Return the next `count` bytes where they are, without a copy."""
        begin = self._at
        self.skip(count)
        return self._data[begin : self._at]

    def skip(self, count: int) -> None:
        """Pass over the next `count` bytes."""
        if count > self.remaining:
            raise WireError(f"truncated: {count} bytes announced, {self.remaining} left")
        self._at += count

    def varint(self) -> int:
        """Return the next varint, at most MAX_VARINT_BYTES long and without padding."""
        value = 0
        for position in range(MAX_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                if byte == 0 and position > 0:
                    raise WireError("varint is not in its shortest form")
                return value
        raise WireError(f"varint is longer than {MAX_VARINT_BYTES} bytes")

    def finish(self) -> None:
        """Raise WireError unless everything was read."""
        if self.remaining:
            raise WireError(f"{self.remaining} bytes too many")
