"""The server's plan, checked and turned into the client's own types."""

from __future__ import annotations

import hashlib

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import Fill, Manifest, Role, TensorSpec, Uniform
from featherfed.compression.stages.zstd import Zstd
from featherfed.edge_client.errors import ClientError
from featherfed.proto import federation_pb2 as pb

MAX_STEP_BYTES = 64 * 2**20
"""A training step is a graph without weights: some hundred kilobytes."""
MAX_VALUES = 2**31
"""A plan with more parameters is a mistake, or an attack on the client's memory."""


def manifest_of(plan: pb.Plan) -> Manifest:
    """Return the plan's manifest; raise ClientError if it makes no sense."""
    try:
        manifest = Manifest(tuple(_spec(tensor) for tensor in plan.manifest))
    except ValueError as error:
        raise ClientError(f"the server's plan cannot be used: {error}") from error
    training, optimization = plan.training, plan.optimization
    if min(training.epochs, training.batch_size, optimization.num_clusters - 1) < 1:
        raise ClientError("the server's plan has no epochs, no batch or no clusters; refused")
    if not 0 < training.learning_rate < float("inf"):
        raise ClientError(f"the server's plan has learning rate {training.learning_rate}; refused")
    if not 0 < manifest.num_values <= MAX_VALUES:
        raise ClientError(f"the server's plan has {manifest.num_values} parameters; refused")
    return manifest


def check_step(step: pb.Step) -> None:
    """Raise ClientError unless an announced training step has a size worth downloading."""
    if not 0 < step.size <= MAX_STEP_BYTES or not 0 < step.compressed <= MAX_STEP_BYTES:
        raise ClientError(f"the server's training step has {step.size} bytes; refused")


def unpack_step(step: pb.Step, compressed: bytes) -> bytes:
    """Return the .tflite that `step` announced; raise ClientError if it is another."""
    check_step(step)
    try:
        content = Zstd().decompress(compressed, step.size)
    except WireError as error:
        raise ClientError(f"the server's training step is damaged: {error}") from error
    if hashlib.sha256(content).digest() != step.digest:
        raise ClientError("the server sent another training step than it announced; refused")
    return content


def _spec(tensor: pb.Tensor) -> TensorSpec:
    seeded = tensor.WhichOneof("initial") == "uniform_limit"
    return TensorSpec(
        tensor.name,
        tuple(tensor.shape),
        Role(tensor.role),
        Uniform(tensor.uniform_limit) if seeded else Fill(tensor.fill),
        tensor.prunable,
    )
