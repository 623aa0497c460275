"""The exported training step as the server hands it out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from featherfed.compression.stages.zstd import Zstd
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused

_LEVEL = 19  # made once, sent to every client


@dataclass(frozen=True)
class OfferedStep:
    """A .tflite for clients without TensorFlow, or why there is none."""

    content: bytes = b""
    missing: str = "this server exports no training step; use Keras clients (--runtime keras)"

    @cached_property
    def compressed(self) -> bytes:
        """The bytes that travel."""
        return Zstd(_LEVEL).compress(self.content)

    def describe(self) -> pb.Step:
        """Return what a client must know before it downloads; raise Refused if there is no step."""
        if not self.content:
            raise Refused(pb.MISSING_CAPABILITY, self.missing)
        digest = hashlib.sha256(self.content).digest()
        return pb.Step(digest=digest, size=len(self.content), compressed=len(self.compressed))
