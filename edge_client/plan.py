"""Read the manifest out of the server's plan, refusing a plan that cannot be trained."""

from __future__ import annotations

from featherfed.compression.exchange.manifest import Fill, Manifest, Role, TensorSpec, Uniform
from featherfed.edge_client.errors import UNKNOWN_HERE, ClientError
from featherfed.proto import federation_pb2 as pb

MAX_VALUES = 2**31
"""Most parameters of a plan: more are a mistake, or an attack on the client's memory."""


def manifest_of(plan: pb.Plan) -> Manifest:
    """Return the plan's manifest; raise ClientError if it or a training setting is invalid."""
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


def _spec(tensor: pb.Tensor) -> TensorSpec:
    initial = tensor.WhichOneof("initial")
    if tensor.role not in set(Role) or initial is None:
        raise ValueError(f"role or initial value of {tensor.name!r} is {UNKNOWN_HERE}")
    return TensorSpec(
        tensor.name,
        tuple(tensor.shape),
        Role(tensor.role),
        Uniform(tensor.uniform_limit) if initial == "uniform_limit" else Fill(tensor.fill),
        tensor.prunable,
    )
