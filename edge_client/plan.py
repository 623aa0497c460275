"""Read manifest and task out of the server's plan, refusing what no server may send.

A plan is small, but tells how much a client allocates and how long it works, so all of it is
bounded here; what the answers after it may hold follows from its manifest (answers.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from featherfed.compression.codec import MAX_MAGNITUDE
from featherfed.compression.exchange.manifest import Fill, Manifest, Role, TensorSpec, Uniform
from featherfed.edge_client.errors import UNKNOWN_HERE, ClientError
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.peer_text import printable
from featherfed.proto.plan_terms import Loss
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import read_task
from featherfed.tasks.metrics import is_larger_better
from featherfed.tasks.task import DTYPES, MAX_INPUTS, MAX_METRICS, MAX_TARGETS, TargetKind, Task

MAX_VALUES = 2**26
"""Most parameters of a model, 256 MiB as float32; servers refuse larger ones too."""
MAX_TENSORS = 2**14
MAX_AXES = 8
MAX_NAME = 500
"""Most characters of a tensor's name."""
MAX_WORD = 64
"""Most characters of the run's name, a role, an optimizer, a loss or a method."""
MAX_EPOCHS = 1000
MAX_BATCH = 2**20
MAX_CLUSTERS = 256
_MOVING = (Role.STATISTIC, Role.NONNEGATIVE)
MAX_DETAIL = 400
"""Most characters of what is told of a task that cannot be."""


def manifest_of(plan: pb.Plan) -> Manifest:
    """Return the plan's manifest; raise ClientError if the plan holds what no plan may."""
    for problem in _problems(plan):
        raise ClientError(f"the server's plan {problem}; refused")
    return Manifest(tuple(_spec(tensor) for tensor in plan.manifest))


def task_of(plan: pb.Plan | pb.GetTaskReply) -> Task:
    """Return the task of a plan, or of the answer to GetTask; raise ClientError if it has none."""
    loss = plan.training.loss if isinstance(plan, pb.Plan) else plan.loss
    for problem in _problems_of_task(plan.task, loss):
        raise ClientError(f"the server's task {problem}")
    if not 0 <= plan.holdout < 1:
        raise ClientError(f"the server's task holds out {plan.holdout} of the data; refused")
    try:
        return read_task(plan.task, loss)
    except TaskError as error:
        text = printable(str(error), MAX_DETAIL)
        raise ClientError(f"the server's task cannot be: {text}; refused") from error


def check_task(task: pb.Train, plan: pb.Plan) -> None:
    """Raise ClientError if a task is not one of the plan's rounds, or cannot be done."""
    last = max(plan.rounds, plan.last_round)
    if not 1 <= task.round <= last or task.version >= task.round:
        raise ClientError(
            f"the server asks for round {task.round} of {last} from version {task.version}; refused"
        )
    if task.calibrate and not any(tensor.momentum for tensor in plan.manifest):
        raise ClientError(
            "the server asks to calibrate a model that has no moving averages; refused"
        )
    if not 0 <= task.sparsity < 1 or not task.slots:
        raise ClientError(
            f"the server asks for a sparsity of {task.sparsity} in one of {task.slots} slots; "
            "refused"
        )


def _problems(plan: pb.Plan) -> Iterator[str]:
    """Yield what is wrong with a plan; nothing costs more than the plan's own size."""
    training, optimization = plan.training, plan.optimization
    words = [plan.run, training.optimizer, training.loss, optimization.method]
    yield from (f"holds the word {printable(w, MAX_WORD)!r}" for w in words if not _is_word(w))
    if not 1 <= training.epochs <= MAX_EPOCHS:
        yield f"has {training.epochs} epochs; 1 to {MAX_EPOCHS} are possible"
    if not 1 <= training.batch_size <= MAX_BATCH:
        yield f"has batches of {training.batch_size}; 1 to {MAX_BATCH} are possible"
    if not 2 <= optimization.num_clusters <= MAX_CLUSTERS:
        yield f"has {optimization.num_clusters} clusters; 2 to {MAX_CLUSTERS} are possible"
    if not 0 < training.learning_rate < float("inf"):
        yield f"has learning rate {training.learning_rate}"
    if len(plan.manifest) > MAX_TENSORS:
        yield f"has {len(plan.manifest)} tensors; at most {MAX_TENSORS} are possible"
    values = 0
    for tensor in plan.manifest:
        yield from _problems_of_tensor(tensor)
        values += math.prod(tensor.shape)
    if plan.manifest and all(tensor.role == Role.FROZEN for tensor in plan.manifest):
        yield "has frozen tensors only, so there is nothing to train"
    if not 0 < values <= MAX_VALUES:
        yield f"has {values} parameters; 1 to {MAX_VALUES} are possible"


def _problems_of_task(task: pb.Task, loss: str) -> Iterator[str]:
    """Yield the words of a task that only a newer version knows."""
    parts = task.target.parts[: MAX_TARGETS + 1]
    several = task.target.kind == TargetKind.SEVERAL and not loss
    words: list[tuple[str, str, frozenset[str]]] = [
        *(() if several else (("loss", loss, frozenset(Loss)),)),
        ("kind of target", task.target.kind, frozenset(TargetKind)),
        *(("loss", part.loss, frozenset(Loss)) for part in parts),
        *(("kind of target", part.kind, frozenset(TargetKind)) for part in parts),
        *(("dtype", given.dtype, frozenset(DTYPES)) for given in task.inputs[: MAX_INPUTS + 1]),
    ]
    for what, word, known in words:
        if word not in known:
            yield f"names the {what} {printable(word, MAX_WORD)!r}, {UNKNOWN_HERE}"
    for name in task.metrics[: MAX_METRICS * max(1, len(parts)) + 1]:
        try:
            is_larger_better(name)
        except TaskError:
            yield f"names the metric {printable(name, MAX_WORD)!r}, {UNKNOWN_HERE}"


def _problems_of_tensor(tensor: pb.Tensor) -> Iterator[str]:
    name = printable(tensor.name, MAX_WORD)
    if len(tensor.name) > MAX_NAME or not tensor.name.isprintable():
        yield f"names a tensor {name!r}"
    if tensor.role not in set(Role):
        yield f"gives {name!r} the role {printable(tensor.role, MAX_WORD)!r}, {UNKNOWN_HERE}"
    if tensor.role == Role.FROZEN and tensor.prunable:
        yield f"prunes {name!r}, which is frozen"
    if tensor.WhichOneof("initial") is None:
        yield f"gives {name!r} an initial value of a kind that is {UNKNOWN_HERE}"
    # Axes of length 0 hide the others from the product, but not from numpy.
    if len(tensor.shape) > MAX_AXES or math.prod(max(1, n) for n in tensor.shape) > MAX_VALUES:
        yield f"has a tensor {name!r} of a shape that no model has"
    if not abs(tensor.fill) <= MAX_MAGNITUDE or not abs(tensor.uniform_limit) <= MAX_MAGNITUDE:
        yield f"gives tensor {name!r} initial values that are not finite"
    if not 0 <= tensor.momentum < 1 or (tensor.momentum and tensor.role not in _MOVING):
        yield f"gives tensor {name!r} the momentum {tensor.momentum}"


def _is_word(text: str) -> bool:
    return len(text) <= MAX_WORD and text.isprintable()


def _spec(tensor: pb.Tensor) -> TensorSpec:
    uniform = tensor.HasField("uniform_limit")
    return TensorSpec(
        tensor.name,
        tuple(tensor.shape),
        Role(tensor.role),
        Uniform(tensor.uniform_limit) if uniform else Fill(tensor.fill),
        tensor.prunable,
        tensor.momentum,
    )
