"""The half of nncodec_peer.py that runs where NNCodec is installed, without featherfed."""

from __future__ import annotations

import io
import struct
import sys
import tempfile
from typing import BinaryIO

import numpy as np

_LENGTH = struct.Struct("<I")


def send(stream: BinaryIO, data: bytes) -> None:
    """Write bytes, preceded by their length."""
    stream.write(_LENGTH.pack(len(data)) + bytes(data))
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Return what `send` wrote; raise struct.error at the end."""
    (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
    return stream.read(length)


def main() -> None:
    """Answer requests: (step, array) with a bitstream, (0, bitstream) with the decoded array."""
    from nncodec import nnc

    source, target = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # it prints
    with tempfile.TemporaryDirectory() as scratch:
        while True:
            try:
                (step,), request = struct.unpack("<i", receive(source)), receive(source)
            except struct.error:
                return
            if step:
                x = {"x": np.load(io.BytesIO(request))}
                path = f"{scratch}/stream.nnc"
                send(target, nnc.compress(x, bitstream_path=path, qp=step, return_bitstream=True))
            else:
                array = io.BytesIO()
                np.save(array, nnc.decompress(bytearray(request))["x"])
                send(target, array.getvalue())


if __name__ == "__main__":
    main()
