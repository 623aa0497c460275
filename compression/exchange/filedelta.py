"""A file encoded as its byte-wise difference from another file (docs/wire-format.md).

Between two versions of an int8 model most bytes are equal and the others differ by a few steps, so
the differences compress better than the new file does with the old one as zstd's dictionary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featherfed.compression.errors import WireError
from featherfed.compression.stages.zstd import Zstd

LEVEL = 19
"""Of zstd: slow to compress, fast to decompress."""


def encode_file(new: bytes, old: bytes = b"") -> bytes:
    """Return a payload from which `decode_file` restores `new`, given the same `old`."""
    target = np.frombuffer(new, np.uint8)
    return Zstd(LEVEL).compress((target - _reference(old, len(new))).tobytes())


def decode_file(payload: bytes, size: int, old: bytes = b"") -> bytes:
    """Return the file of `size` bytes; the caller must check its digest.

    Allocates little more than `size` whatever the payload holds. Raises WireError if the payload is
    not one zstd frame with `size` bytes in it.
    """
    content = Zstd().decompress(payload, size)
    if len(content) != size:
        raise WireError(f"a file of {size} bytes was announced, {len(content)} came")
    result = _reference(old, size)
    result += np.frombuffer(content, np.uint8)
    return result.tobytes()


def _reference(old: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [size]: the old file, truncated or padded with zeros."""
    reference = np.zeros(size, np.uint8)
    known = np.frombuffer(old, np.uint8)[:size]
    reference[: len(known)] = known
    return reference
