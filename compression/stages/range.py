"""Byte stage `range`: an adaptive range coder (package `constriction`).

The package has no wheel for Linux on ARM, so it is optional: without it the stage is unknown, and a
client that lacks it gets the fallback codec.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from featherfed.compression.buffer import Reader, varint
from featherfed.compression.errors import WireError

try:
    import constriction
except ImportError:
    constriction = None

AVAILABLE = constriction is not None
"""Whether the package is installed."""

_FIRST, _LARGEST = 16, 256  # sizes of blocks: their bytes are coded with the same counts
_SEEN = 32  # weight of one occurrence; it is added to a weight of 1 that every byte has


@dataclass(frozen=True)
class Range:
    """Code each byte by its frequency among those before it; recent bytes count most."""

    name: ClassVar[str] = "range"

    def compress(self, data: bytes) -> bytes:
        """Return twice the length as a varint, then the coder's 32-bit words.

        If the words are not shorter than the data: twice the length plus 1, then the data.
        """
        symbols = np.frombuffer(data, np.uint8).astype(np.int32)
        encoder, counts = constriction.stream.queue.RangeEncoder(), _Counts()
        for at, size in _blocks(len(symbols)):
            block = symbols[at : at + size]
            encoder.encode(block, counts.model())
            counts.add(block)
        words: bytes = encoder.get_compressed().astype("<u4").tobytes()
        if len(words) < len(data):
            return varint(2 * len(data)) + words
        return varint(2 * len(data) + 1) + data

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return the original, at most `limit` bytes.

        Raises WireError unless `data` is what `compress` makes of it.
        """
        reader = Reader(data)
        length, plain = divmod(reader.varint(), 2)
        if length > limit:
            raise WireError(f"range: content is larger than {limit} bytes")
        rest = reader.take(reader.remaining)
        content = rest if plain else self._decode(rest, length)
        if self.compress(content) != data:
            raise WireError("range: the words are not those of their content")
        return content

    def _decode(self, words: bytes, length: int) -> bytes:
        if len(words) % 4:
            raise WireError("range: the coder's words are cut short")
        raw = np.frombuffer(words, "<u4").astype(np.uint32)
        decoder, counts = constriction.stream.queue.RangeDecoder(raw), _Counts()
        content = bytearray()
        try:
            for _, size in _blocks(length):
                block = decoder.decode(counts.model(), size)
                counts.add(block)
                content += block.astype(np.uint8).tobytes()
        except (AssertionError, ValueError) as error:
            raise WireError(f"range: {error}") from error
        return bytes(content)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """Yield (start, size): each block as large as all before it, within bounds."""
    at = 0
    while at < length:
        size = min(max(at, _FIRST), _LARGEST, length - at)
        yield at, size
        at += size


class _Counts:
    """How often each byte occurred, as integers; older occurrences count less."""

    def __init__(self) -> None:
        self._seen: npt.NDArray[np.int64] = np.zeros(256, np.int64)

    def model(self) -> Any:
        weights = (self._seen + 1).astype(np.float64)
        return constriction.stream.model.Categorical(weights, perfect=False)

    def add(self, block: npt.NDArray[np.int32]) -> None:
        self._seen -= (self._seen + 9) // 10
        self._seen += _SEEN * np.bincount(block, minlength=256)
