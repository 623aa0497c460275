"""Whether the data that a client tells of fit the run's task."""

from __future__ import annotations

from collections.abc import Sequence

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Refused
from featherfed.server.storage.records import ClientRecord
from featherfed.tasks.task import TargetKind, Task

MAX_EXAMPLES = 10**8
"""More than any client can train on; as a weight in the mean it would silence all others."""


def check_data(data: pb.DataSummary, task: Task) -> None:
    """Raise Refused, naming what is wrong and what to do, unless the data fit the task."""
    _check_inputs(data, task)
    if task.target.parts:
        _check_targets(data, task)
    else:
        _check_target(data, task)
        _check_classes(data, task)
    if data.num_examples < 1:
        raise Refused(pb.DATA_MISMATCH, "there is not one example to train on")
    if max(data.num_examples, data.num_held_out) > MAX_EXAMPLES:
        most = max(data.num_examples, data.num_held_out)
        raise Refused(
            pb.BAD_EXAMPLE_COUNT,
            f"{most} examples are more than any device has (at most {MAX_EXAMPLES})",
        )


def most_held_out(record: ClientRecord) -> int:
    """Return the most examples that a client may evaluate on, whose data may have grown."""
    return MAX_EXAMPLES if record.num_held_out else 0


def _check_inputs(data: pb.DataSummary, task: Task) -> None:
    if len(data.inputs) != len(task.inputs):
        names = ", ".join(given.name for given in task.inputs)
        raise Refused(
            pb.DATA_MISMATCH,
            f"the data have {len(data.inputs)} inputs, the task has {names}; convert the data or "
            "join another run",
        )
    for given, found in zip(task.inputs, data.inputs, strict=True):
        _check_tensor(f"input {given.name!r}", found, given.dtype, given.shape)


def _check_target(data: pb.DataSummary, task: Task) -> None:
    target = task.target
    wanted = target.kind is not TargetKind.INPUT
    if data.HasField("target") != wanted:
        raise Refused(
            pb.DATA_MISMATCH,
            f"the data have no targets, and the task needs them ({target.kind})"
            if wanted
            else "the data have targets, but the task's target is the input; drop them",
        )
    if wanted:
        _check_tensor("the target", data.target, target.dtype, target.shape)


def _check_targets(data: pb.DataSummary, task: Task) -> None:
    names = ", ".join(task.target.names)
    if len(data.targets) != len(task.target.parts) or data.HasField("target"):
        raise Refused(
            pb.DATA_MISMATCH,
            f"the data have {len(data.targets)} targets by name, the task has {names}; "
            "give an array for each by its name, or join another run",
        )
    for part, found in zip(task.target.parts, data.targets, strict=True):
        _check_tensor(f"target {part.name!r}", found, part.dtype, part.shape)
        if part.kind is TargetKind.CLASS and not 1 <= found.num_classes <= len(part.class_names):
            raise Refused(
                pb.DATA_MISMATCH,
                f"target {part.name!r}: classes up to {int(found.num_classes) - 1} do not fit the "
                f"task, which has {len(part.class_names)} of them; check the targets or join "
                "another run",
            )
    if data.class_names:
        raise Refused(pb.DATA_MISMATCH, "class names without a target; several targets name none")


def _check_tensor(what: str, found: pb.TensorSummary, dtype: str, shape: Sequence[int]) -> None:
    if (found.dtype, tuple(found.shape)) != (dtype, tuple(shape)):
        raise Refused(
            pb.DATA_MISMATCH,
            f"{what}: the data are {found.dtype[:20]} {_text(found.shape)}, the task needs {dtype} "
            f"{_text(shape)} for each example; convert the data or join another run",
        )


def _text(shape: Sequence[int]) -> str:
    some = [str(size) for size in shape[:8]]
    return f"[{', '.join([*some, *(['...'] if shape[8:] else [])])}]"


def _check_classes(data: pb.DataSummary, task: Task) -> None:
    names = task.target.class_names
    if task.target.kind is TargetKind.CLASS and not 1 <= data.num_classes <= len(names):
        raise Refused(
            pb.DATA_MISMATCH,
            f"classes up to {int(data.num_classes) - 1} do not fit the task, which has "
            f"{len(names)} of them; check the targets or join another run",
        )
    if data.class_names and tuple(data.class_names) != names:
        raise Refused(
            pb.DATA_MISMATCH,
            f"classes {_some(data.class_names)} are not the run's {_some(names)}; in a folder of "
            "images, every class needs a subfolder, even an empty one",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:10], *(["..."] if names[10:] else [])]) or "(none)"
