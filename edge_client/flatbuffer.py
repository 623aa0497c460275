"""Reads FlatBuffers, the format of .tflite files, where the file may be anything.

The generated readers of Python's `flatbuffers` follow an offset to before the file's start, where
C++ reads something else. Here every offset is checked: https://flatbuffers.dev/internals
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_U16, _U32, _I32 = (struct.Struct(f"<{code}").unpack_from for code in "HIi")
_ITEM = {code: struct.Struct(f"<{code}") for code in "bBiIQ"}


class BadOffset(ValueError):
    """Something points to outside of the file, or is cut off by its end."""


class Table:
    """A table of a FlatBuffer; `slot` numbers its fields in the schema's order, from 0."""

    def __init__(self, content: bytes, position: int) -> None:
        """Open the table at `position`; raise BadOffset if it does not lie in `content`."""
        self._content = content
        self._position = position
        try:
            self._vtable = position - _I32(content, position)[0]
            if self._vtable < 0:
                raise BadOffset("a table's fields begin before the file")
            self._vtable_bytes = _U16(content, self._vtable)[0]
        except struct.error as error:
            raise BadOffset("a table lies outside of the file") from error

    def number(self, slot: int, code: str, default: int = 0) -> int:
        """Return a number of the type `code`, as in `struct`."""
        if not (field := self._field(slot)):
            return default
        try:
            value: int = _ITEM[code].unpack_from(self._content, field)[0]
        except struct.error as error:
            raise BadOffset("a number lies outside of the file") from error
        return value

    def has(self, slot: int) -> bool:
        """Return whether the field is there."""
        return bool(self._field(slot))

    def length(self, slot: int, item_bytes: int = 4) -> int:
        """Return the length of a vector of items of `item_bytes`, 0 if it is not there."""
        return self._vector(slot, item_bytes)[1]

    def numbers(self, slot: int) -> tuple[int, ...]:
        """Return a vector of int32."""
        start, count = self._vector(slot, 4)
        return struct.unpack_from(f"<{count}i", self._content, start)

    def tables(self, slot: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        start, count = self._vector(slot, 4)
        for place in range(start, start + 4 * count, 4):
            yield Table(self._content, place + _U32(self._content, place)[0])

    def _field(self, slot: int) -> int:
        """Return a field's position, 0 if it is not there."""
        place = 4 + 2 * slot
        if place + 2 > self._vtable_bytes:
            return 0
        try:
            offset: int = _U16(self._content, self._vtable + place)[0]
        except struct.error as error:
            raise BadOffset("a table's fields lie outside of the file") from error
        return offset and self._position + offset

    def _vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Return where a vector's items begin, and their number."""
        if not (field := self._field(slot)):
            return 0, 0
        try:
            start = field + _U32(self._content, field)[0]
            count: int = _U32(self._content, start)[0]
        except struct.error as error:
            raise BadOffset("a list lies outside of the file") from error
        if start + 4 + count * item_bytes > len(self._content):
            raise BadOffset(f"a list of {count} is longer than the file")
        return start + 4, count


def root(content: bytes, identifier: bytes) -> Table:
    """Return the outermost table; raise BadOffset if it or the file's identifier is missing."""
    if content[4:8] != identifier:
        raise BadOffset(f"it is no {identifier.decode()} file")
    return Table(content, _U32(content, 0)[0])
