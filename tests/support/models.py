"""Models that tests train: the shapes of their tensors, and of the data."""

from __future__ import annotations

from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, Uniform
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.task import Task, image_task

MODELS = {
    "tiny": Manifest(
        (
            TensorSpec("kernel", (48, 64), initial=Uniform(0.1), prunable=True),
            TensorSpec("bias", (64,)),
            TensorSpec("variance", (64,), Role.NONNEGATIVE),
        )
    ),
    "cnn": Manifest(  # 225,034 parameters, as the example's
        (
            TensorSpec("conv1/kernel", (3, 3, 1, 32), initial=Uniform(0.1)),
            TensorSpec("conv1/bias", (32,)),
            TensorSpec("conv2/kernel", (3, 3, 32, 64), initial=Uniform(0.1)),
            TensorSpec("conv2/bias", (64,)),
            TensorSpec("dense1/kernel", (1600, 128), initial=Uniform(0.1)),
            TensorSpec("dense1/bias", (128,)),
            TensorSpec("dense2/kernel", (128, 10), initial=Uniform(0.1)),
            TensorSpec("dense2/bias", (10,)),
        )
    ),
    "large": Manifest(  # 3.5 million parameters, 14 MB
        (
            TensorSpec("dense1/kernel", (1000, 3000), initial=Uniform(0.1)),
            TensorSpec("dense2/kernel", (3000, 166), initial=Uniform(0.1)),
            TensorSpec("dense2/bias", (166,)),
        )
    ),
}
MANIFEST = MODELS["tiny"]
SHAPE = (8, 8, 1)
CLASSES = tuple("abcdefghij")
TASK = image_task(SHAPE, CLASSES)
EXAMPLES = 100


def summary(
    task: Task = TASK, num_examples: int = EXAMPLES, num_held_out: int = 0
) -> pb.DataSummary:
    """Return what a client says of data that fit a task, without statistics."""
    target = task.target
    return pb.DataSummary(
        num_examples=num_examples,
        num_held_out=num_held_out,
        inputs=[pb.TensorSummary(dtype=given.dtype, shape=given.shape) for given in task.inputs],
        target=pb.TensorSummary(dtype=target.dtype, shape=target.shape) if target.dtype else None,
        num_classes=len(target.class_names) if target.kind == "class" else 0,
    )
