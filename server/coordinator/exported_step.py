"""The exported training step that clients without TensorFlow download."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from featherfed.compression.stages.zstd import Zstd
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused

_LEVEL = 19  # compressed once, sent to every client


@dataclass(frozen=True)
class ExportedStep:
    """A .tflite that runs one step of the plan's training, or the reason why there is none."""

    content: bytes = b""
    missing: str = "this server exports no training step; use Keras clients (--runtime keras)"

    @cached_property
    def compressed(self) -> bytes:
        """The bytes that clients download."""
        return Zstd(_LEVEL).compress(self.content)

    def describe(self) -> pb.Step:
        """Return digest and sizes, for a client to check; raise Refused if there is no step."""
        if not self.content:
            raise Refused(pb.MISSING_CAPABILITY, self.missing)
        digest = hashlib.sha256(self.content).digest()
        return pb.Step(digest=digest, size=len(self.content), compressed=len(self.compressed))
