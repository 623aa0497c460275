"""The plan that every client gets, made from the settings and the model."""

from __future__ import annotations

from featherfed.compression.exchange.manifest import Fill, Manifest, TensorSpec
from featherfed.compression.sketch import COARSE
from featherfed.proto import federation_pb2 as pb
from featherfed.server.settings.settings import Settings
from featherfed.tasks.message import task_message
from featherfed.tasks.task import Task


def make_plan(settings: Settings, task: Task, model_json: str, manifest: Manifest) -> pb.Plan:
    """Return the plan; it holds data that a client can check, never code."""
    training = settings.training
    optimization = settings.optimization
    return pb.Plan(
        run=settings.name,
        model_json=model_json,
        manifest=[_tensor(spec) for spec in manifest],
        seed=settings.seed,
        training=pb.Training(
            epochs=training.epochs,
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            optimizer=training.optimizer,
            loss=task.loss,
        ),
        optimization=pb.Optimization(
            method=optimization.method, num_clusters=optimization.num_clusters
        ),
        rounds=settings.rounds,
        heartbeat_seconds=settings.clients.heartbeat,
        report=COARSE,
        task=task_message(task),
        holdout=settings.evaluation.share_held_out,
    )


def _tensor(spec: TensorSpec) -> pb.Tensor:
    tensor = pb.Tensor(
        name=spec.name,
        shape=spec.shape,
        role=spec.role,
        prunable=spec.prunable,
        momentum=spec.momentum,
    )
    if isinstance(spec.initial, Fill):
        tensor.fill = spec.initial.value
    else:
        tensor.uniform_limit = spec.initial.limit
    return tensor
