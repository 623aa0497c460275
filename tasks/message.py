"""Tasks, statistics and scalings as protobuf messages, and back from a peer that is not trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.errors import TaskError
from featherfed.tasks.scaling import FeatureScale, FeatureSums, Scaling, Statistics
from featherfed.tasks.scoring import Sums
from featherfed.tasks.task import (
    MAX_CLASSES,
    MAX_INPUTS,
    MAX_METRICS,
    MAX_TARGETS,
    Input,
    Target,
    Task,
    Window,
)


def task_message(task: Task) -> pb.Task:
    """Return a task as a message; its loss stands elsewhere."""
    window = task.window
    return pb.Task(
        inputs=[
            pb.Input(
                name=given.name,
                dtype=given.dtype,
                shape=given.shape,
                divide_by=given.divide_by if given.dtype == "uint8" else 0.0,
                vocabulary=given.vocabulary,
                standardize=given.standardize,
                columns=given.columns,
            )
            for given in task.inputs
        ],
        target=_target_message(task.target),
        metrics=task.metrics,
        window=None if window is None else pb.Window(**asdict(window)),
    )


def _target_message(target: Target) -> pb.Target:
    message = pb.Target(
        kind=target.kind.value,
        shape=target.shape,
        class_names=target.class_names,
        standardize=target.standardize,
        columns=target.columns,
        parts=[_target_message(part) for part in target.parts],
    )
    if target.name:
        message.name, message.loss, message.weight = target.name, str(target.loss), target.weight
    return message


def read_task(message: pb.Task, loss: str) -> Task:
    """Return a peer's task; raise TaskError if it cannot be one."""
    if len(message.inputs) > MAX_INPUTS or len(message.target.class_names) > MAX_CLASSES:
        raise TaskError("a task of too many inputs or classes")
    if len(message.target.parts) > MAX_TARGETS:
        raise TaskError(f"a task of {len(message.target.parts)} targets; at most {MAX_TARGETS} are")
    most = MAX_METRICS * max(1, len(message.target.parts))
    if len(message.metrics) > most:
        raise TaskError(f"a task of {len(message.metrics)} metrics; at most {most} are")
    return Task(
        tuple(
            Input(
                given.name,
                given.dtype,
                tuple(given.shape),
                given.divide_by if given.dtype == "uint8" else 255.0,
                given.vocabulary,
                given.standardize,
                tuple(given.columns),
            )
            for given in message.inputs
        ),
        _read_target(message.target),
        (loss or None),  # type: ignore[arg-type]  # the task makes a Loss of it
        tuple(message.metrics),
        _read_window(message.window) if message.HasField("window") else None,
    )


def _read_target(message: pb.Target, is_part: bool = False) -> Target:
    if len(message.class_names) > MAX_CLASSES:
        raise TaskError("a target of too many classes")
    if is_part and message.parts:
        raise TaskError("one of several targets is several itself")
    parts = tuple(_read_target(part, is_part=True) for part in message.parts)
    return Target(
        message.kind,  # type: ignore[arg-type]  # the target makes a kind of it
        tuple(message.shape),
        tuple(message.class_names),
        message.standardize,
        tuple(message.columns),
        message.name,
        (message.loss or None),  # type: ignore[arg-type]  # the target makes a Loss of it
        message.weight if is_part else 1.0,
        parts,
    )


def _read_window(message: pb.Window) -> Window:
    return Window(message.length, message.stride, message.horizon, message.group)


def statistics_message(statistics: Statistics) -> pb.Statistics:
    """Return a client's statistics as a message."""
    target = statistics.target
    return pb.Statistics(
        inputs=[_sums_message(sums) for sums in statistics.inputs],
        target=None if target is None else _sums_message(target),
        targets=[_sums_message(sums) for sums in statistics.targets],
    )


def read_statistics(message: pb.Statistics, task: Task) -> Statistics:
    """Return a client's statistics; raise TaskError unless they are of what the task needs."""
    target = message.target if message.HasField("target") else None
    statistics = Statistics(
        tuple(_read_sums(sums) for sums in message.inputs[: MAX_INPUTS + 1]),
        None if target is None else _read_sums(target),
        tuple(_read_sums(sums) for sums in message.targets[: MAX_TARGETS + 1]),
    )
    statistics.check(task)
    return statistics


def scaling_message(scaling: Scaling) -> pb.Scaling:
    """Return a scaling as a message."""
    target = scaling.target
    return pb.Scaling(
        inputs=[_scale_message(scale) for scale in scaling.inputs],
        target=None if target is None else _scale_message(target),
        targets=[_scale_message(scale) for scale in scaling.targets],
    )


def read_scaling(message: pb.Scaling, task: Task) -> Scaling:
    """Return a server's scaling; raise TaskError unless it is what the task needs."""
    target = message.target if message.HasField("target") else None
    scaling = Scaling(
        tuple(_read_scale(scale) for scale in message.inputs[: MAX_INPUTS + 1]),
        None if target is None else _read_scale(target),
        tuple(_read_scale(scale) for scale in message.targets[: MAX_TARGETS + 1]),
    )
    scaling.check(task)
    return scaling


def evaluation_message(sums: Sums) -> pb.Evaluation:
    """Return the sums of an evaluation as a message, float32."""
    return pb.Evaluation(sums=sums.astype(np.float32).tolist())


def read_evaluation(message: pb.Evaluation) -> Sums:
    """Return the sums of a peer's evaluation, unchecked."""
    return np.array(message.sums, np.float64)


def _sums_message(sums: FeatureSums | None) -> pb.FeatureSums:
    if sums is None:
        return pb.FeatureSums()
    return pb.FeatureSums(count=sums.count, sums=sums.sums.tolist(), squares=sums.squares.tolist())


def _read_sums(message: pb.FeatureSums) -> FeatureSums | None:
    if not message.ByteSize():
        return None
    return FeatureSums(message.count, _floats(message.sums), _floats(message.squares))


def _scale_message(scale: FeatureScale | None) -> pb.FeatureScale:
    if scale is None:
        return pb.FeatureScale()
    return pb.FeatureScale(mean=scale.mean.tolist(), deviation=scale.deviation.tolist())


def _read_scale(message: pb.FeatureScale) -> FeatureScale | None:
    if not message.ByteSize():
        return None
    return FeatureScale(np.array(message.mean, np.float32), np.array(message.deviation, np.float32))


def _floats(values: Sequence[float]) -> Sums:
    return np.array(values, np.float64)
