"""Shared randomness: streams that both sides derive from one seed, bit-exact on every platform.

A `Key` names a stream of the counter-based generator Philox 4x64-10 (Salmon et al. 2011), whose raw
output numpy keeps stable. Keys are derived by SHA-256, so equal paths give equal streams and
different paths unrelated ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Return the first `count` 64-bit words of the stream."""
        pair = np.frombuffer(self.bits, "<u8").astype(np.uint64)
        raw: npt.NDArray[np.uint64] = np.random.Philox(key=pair).random_raw(count)
        return raw

    def signs(self, count: int) -> npt.NDArray[np.float32]:
        """Return `count` values of +1 or -1, float32, one bit of the stream each."""
        octets = self.words(-(-count // 64)).astype("<u8").view(np.uint8)
        bits = np.unpackbits(octets, count=count, bitorder="little")
        return np.float32(1) - np.float32(2) * bits.astype(np.float32)


NO_KEY = Key.root(0)
"""For stages that need no shared randomness."""
