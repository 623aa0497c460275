"""The exported training step: checked, downloaded and unpacked."""

from __future__ import annotations

import hashlib

from featherfed.compression.errors import WireError
from featherfed.compression.stages.zstd import Zstd
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.state import ClientState
from featherfed.edge_client.transport import Transport
from featherfed.proto import federation_pb2 as pb

MAX_STEP_BYTES = 64 * 2**20
"""Most bytes of a training step, which is a graph without weights: usually some 100 kB."""


def load_training_step(
    announced: pb.Step, state: ClientState, transport: Transport, session: int
) -> bytes:
    """Return the announced training step's file, downloading it unless `state` has it.

    Raises ClientError if the server sends another one.
    """
    content = state.training_step(announced.digest)
    if content is None:
        content = unpack_step(announced, transport.fetch_step(session, announced))
        state.save_training_step(content)
    return content


def check_step(step: pb.Step) -> None:
    """Raise ClientError if an announced training step is empty or too large to download."""
    if not 0 < step.size <= MAX_STEP_BYTES or not 0 < step.compressed <= MAX_STEP_BYTES:
        raise ClientError(f"the server's training step has {step.size} bytes; refused")


def unpack_step(step: pb.Step, compressed: bytes) -> bytes:
    """Return the file that `step` announced; raise ClientError if it is another."""
    check_step(step)
    try:
        content = Zstd().decompress(compressed, step.size)
    except WireError as error:
        raise ClientError(f"the server's training step is damaged: {error}") from error
    if hashlib.sha256(content).digest() != step.digest:
        raise ClientError("the server sent another training step than it announced; refused")
    return content
