"""Byte stage `zstd`, `zstd(level)` (RFC 8878), by Python's own module or its backport."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from featherfed.compression.errors import CodecError, WireError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAGIC = b"\x28\xb5\x2f\xfd"
_MIN_WINDOW = 2**10
_MAX_WINDOW = 2**27  # what level 22 needs; a frame that asks for more is not ours


@dataclass(frozen=True)
class Zstd:
    """Zstandard without frame checksum or content size: the wire format has its own."""

    level: int = 3

    name: ClassVar[str] = "zstd"

    def __post_init__(self) -> None:
        if not isinstance(self.level, int) or not 1 <= self.level <= 22:
            raise CodecError(f"zstd needs a level from 1 to 22, got {self.level!r}")

    def compress(self, data: bytes, base: bytes = b"") -> bytes:
        """Return one zstd frame, which refers to `base` if there is one."""
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: self.level,
            zstd.CompressionParameter.content_size_flag: False,
            zstd.CompressionParameter.checksum_flag: False,
            zstd.CompressionParameter.dict_id_flag: False,
        }
        frame: bytes = zstd.compress(data, options=options, zstd_dict=_dictionary(base))
        return frame

    def decompress(self, data: bytes, limit: int, base: bytes = b"") -> bytes:
        """Return the content of one whole frame and nothing after it, at most `limit` bytes.

        `base`: as it was compressed with.

        Stops one byte after the limit, whatever size the frame declares.
        """
        declared, window = _header(data)
        largest = min(max(2 * (limit + len(base)), _MIN_WINDOW), _MAX_WINDOW)
        if window > largest:
            raise WireError(f"zstd: a window of {window} bytes, more than {largest}")
        # The library takes powers of two only, hence the exact check above.
        options: dict[int, int] = {
            zstd.DecompressionParameter.window_log_max: (largest - 1).bit_length()
        }
        frame = zstd.ZstdDecompressor(zstd_dict=_dictionary(base), options=options)
        try:
            content: bytes = frame.decompress(data, max_length=limit + 1)
        except zstd.ZstdError as error:
            raise WireError(f"zstd: {error}") from error
        if len(content) > limit:
            raise WireError(f"zstd: content is larger than {limit} bytes")
        if not frame.eof or frame.unused_data:
            raise WireError("zstd: the frame is cut short, or bytes come after it")
        # The library does not compare them where the last block is empty.
        if declared is not None and declared != len(content):
            raise WireError(f"zstd: {declared} bytes announced, {len(content)} there")
        return content


def _dictionary(base: bytes) -> zstd.ZstdDict | None:
    return zstd.ZstdDict(base, is_raw=True) if base else None


def _header(data: bytes) -> tuple[int | None, int]:
    """Return a frame's declared content size, if any, and its window (RFC 8878, 3.1.1.1)."""
    if not _MAGIC.startswith(data[:4]):
        raise WireError("zstd: not a frame")
    try:
        declared = zstd.get_frame_info(data).decompressed_size
    except zstd.ZstdError as error:
        raise WireError("zstd: the header is cut short or wrong") from error
    if data[4] & 0x20:  # a single segment: its window is its content
        return declared, declared or 0
    base = 1 << 10 + (data[5] >> 3)
    return declared, base + base // 8 * (data[5] & 7)
