"""A file as what differs from another file; docs/wire-format.md says how, in two lines.

Between two versions of an int8 model most bytes are equal and the others a few steps apart, so
their differences compress better than zstd does with the old file as its dictionary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featherfed.compression.errors import WireError
from featherfed.compression.stages.zstd import Zstd

LEVEL = 19


def encode_file(new: bytes, old: bytes = b"") -> bytes:
    """Return what makes `new` of `old` in `decode_file`; without `old`, of nothing."""
    target = np.frombuffer(new, np.uint8)
    return Zstd(LEVEL).compress((target - _reference(old, len(new))).tobytes())


def decode_file(payload: bytes, size: int, old: bytes = b"") -> bytes:
    """Return the file of `size` bytes; whether it is the right one, its digest must tell.

    Allocates little more than `size` whatever the payload says. Raises WireError if the payload is
    not one zstd frame with `size` bytes in it.
    """
    content = Zstd().decompress(payload, size)
    if len(content) != size:
        raise WireError(f"a file of {size} bytes was announced, {len(content)} came")
    result = _reference(old, size)
    result += np.frombuffer(content, np.uint8)
    return result.tobytes()


def _reference(old: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [size]: the old file, cut or filled up with zeros."""
    reference = np.zeros(size, np.uint8)
    known = np.frombuffer(old, np.uint8)[:size]
    reference[: len(known)] = known
    return reference
