"""The file of a training step: two .tflites in one, of training and of inference."""

from __future__ import annotations

import struct
from typing import NamedTuple

_LENGTH = struct.Struct("<I")


class StepFile(NamedTuple):
    """The two .tflites of a training step."""

    train: bytes
    answer: bytes


def join_step(train: bytes, answer: bytes) -> bytes:
    """Return the file of a training step: the first part's length (uint32, little), both parts."""
    return _LENGTH.pack(len(train)) + train + answer


def split_step(content: bytes) -> StepFile:
    """Return the parts of a training step's file; raise ValueError if it is none."""
    if len(content) < _LENGTH.size:
        raise ValueError(f"{len(content)} bytes")
    (length,) = _LENGTH.unpack_from(content)
    parts = content[_LENGTH.size :]
    if not 0 < length < len(parts):
        raise ValueError(f"its first part has {length} of {len(parts)} bytes")
    return StepFile(parts[:length], parts[length:])
