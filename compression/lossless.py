"""Byte stages: `zstd` and `zstd(level)` (RFC 8878, package `zstandard`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import zstandard

from featherfed.compression.errors import CodecError, WireError

_MAX_WINDOW = 2**27  # what level 22 needs; a frame that asks for more is not ours


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
        """Return the frame's content; stops reading, and raises WireError, above `limit` bytes."""
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        try:
            with decompressor.stream_reader(data, read_across_frames=False) as reader:
                content = reader.read(limit + 1)
        except zstandard.ZstdError as error:
            raise WireError(f"zstd: {error}") from error
        if len(content) > limit:
            raise WireError(f"zstd: content is larger than {limit} bytes")
        return content
