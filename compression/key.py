"""Shared randomness: streams that both sides derive from one seed, bit-exact on every platform.

A `Key` names a stream of the counter-based generator Philox 4x64-10 (Salmon et al. 2011), whose raw
output numpy keeps stable. Keys are derived by SHA-256, so equal paths give equal streams and
different paths unrelated ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


class _NoSeed(np.random.SeedSequence):
    """Seeds a generator whose key is set afterwards.

    `Philox(key=...)` would ask the system for random bytes first, and not use them.
    """

    def generate_state(
        self, n_words: int, dtype: npt.DTypeLike = np.uint32
    ) -> npt.NDArray[np.uint32 | np.uint64]:
        """Return zeros."""
        return np.zeros(n_words, dtype)


_NO_SEED = _NoSeed(0)
_BEGIN = np.random.Philox(_NO_SEED).state
"""The state of a stream from which nothing was drawn, but for its key."""


@dataclass(frozen=True)
class Key:
    """128 bits that identify a stream of random words."""

    bits: bytes

    @classmethod
    def root(cls, seed: int) -> Key:
        """Return the key of a run with `seed`, 0 to 2**64 - 1."""
        return cls(hashlib.sha256(b"featherfed" + seed.to_bytes(8, "little")).digest()[:16])

    def child(self, *path: int | str) -> Key:
        """Return the key at `path` below this one; different paths give unrelated streams."""
        sha = hashlib.sha256(self.bits)
        for part in path:
            text = str(part).encode()
            sha.update(len(text).to_bytes(4, "little") + text)
        return Key(sha.digest()[:16])

    def words(self, count: int) -> Words:
        """Return the first `count` 64-bit words of the stream."""
        return self._stream().random_raw(count)

    def blocks(self, count: int, size: int) -> Iterator[Words]:
        """Yield the first `count` words of the stream, `size` at a time."""
        stream = self._stream()
        for begin in range(0, count, size):
            yield stream.random_raw(min(size, count - begin))

    def signs(self, count: int) -> npt.NDArray[np.float32]:
        """Return `count` values of +1 or -1, float32, one bit of the stream each."""
        octets = self.words(-(-count // 64)).astype("<u8", copy=False).view(np.uint8)
        signs = np.unpackbits(octets, count=count, bitorder="little").astype(np.float32)
        signs *= -2
        signs += 1
        return signs

    def _stream(self) -> np.random.Philox:
        stream = np.random.Philox(_NO_SEED)
        key = np.frombuffer(self.bits, "<u8").astype(np.uint64)
        stream.state = {**_BEGIN, "state": {"counter": np.zeros(4, np.uint64), "key": key}}
        return stream


NO_KEY = Key.root(0)
"""For stages that need no shared randomness."""
