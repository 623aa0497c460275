"""Byte stages: `zstd` and `zstd(level)` (RFC 8878, package `zstandard`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import zstandard

from featherfed.compression.errors import CodecError, WireError

_MIN_WINDOW = 2**10
_MAX_WINDOW = 2**27  # what level 22 needs; a frame that asks for more is not ours
_PIECE = 256  # bytes at a time; a block is at least 4 bytes, and its content at most 128 KiB


@dataclass(frozen=True)
class Zstd:
    """Zstandard without frame checksum or content size: the wire format has its own."""

    level: int = 3

    name: ClassVar[str] = "zstd"

    def __post_init__(self) -> None:
        if not isinstance(self.level, int) or not 1 <= self.level <= 22:
            raise CodecError(f"zstd needs a level from 1 to 22, got {self.level!r}")

    def compress(self, data: bytes) -> bytes:
        """Return one zstd frame."""
        compressor = zstandard.ZstdCompressor(
            level=self.level, write_checksum=False, write_content_size=False, write_dict_id=False
        )
        return compressor.compress(data)

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return the content of one whole frame and nothing after it, at most `limit` bytes.

        Decompresses piece by piece, so a bomb ends soon after the limit.
        """
        window = min(max(2 * limit, _MIN_WINDOW), _MAX_WINDOW)
        stream = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
        content = bytearray()
        try:
            for at in range(0, len(data), _PIECE):
                content += stream.decompress(data[at : at + _PIECE])
                if len(content) > limit:
                    raise WireError(f"zstd: content is larger than {limit} bytes")
        except zstandard.ZstdError as error:
            raise WireError(f"zstd: {error}") from error
        if not stream.eof or stream.unused_data:
            raise WireError("zstd: the frame is cut short, or bytes come after it")
        return bytes(content)
