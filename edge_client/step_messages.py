"""Messages between a client and the process in which its training step runs.

A message is the length of a JSON object as four bytes, the object, and then the bytes that both
sides know to follow. Nothing is unpickled: the process has run a stranger's file.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_MAX_HEADER_BYTES = 1 << 20


def send(connection: socket.socket, header: dict[str, Any], *parts: bytes | memoryview) -> None:
    """Send a JSON object and the bytes that follow it."""
    text = json.dumps(header).encode()
    connection.sendall(struct.pack("<I", len(text)) + text)
    for part in parts:
        connection.sendall(part)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Return the next JSON object.

    Raises EOFError at the end of the connection, ValueError if it is none.
    """
    (size,) = struct.unpack("<I", receive_bytes(connection, 4))
    if size > _MAX_HEADER_BYTES:
        raise ValueError(f"{size} bytes announced")
    try:
        header = json.loads(receive_bytes(connection, size))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("no object")
    return header


def receive_bytes(connection: socket.socket, size: int) -> bytearray:
    """Return the next `size` bytes; raise EOFError if the connection ends before."""
    content = bytearray(size)
    view = memoryview(content)
    while view:
        if not (count := connection.recv_into(view)):
            raise EOFError
        view = view[count:]
    return content


def receive_arrays(
    connection: socket.socket, shapes: Sequence[tuple[int, ...]], dtype: Any
) -> list[npt.NDArray[Any]]:
    """Return the arrays that follow, of these shapes and one dtype."""
    item = np.dtype(dtype).itemsize
    return [
        np.frombuffer(
            receive_bytes(connection, item * int(np.prod(shape, dtype=np.int64))), dtype
        ).reshape(shape)
        for shape in shapes
    ]


def array_bytes(array: npt.NDArray[Any]) -> memoryview:
    """Return an array's bytes in C order, as a view where there is one."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
