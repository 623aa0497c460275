"""The tensors that a training step takes of a batch of examples, as the task asks for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from featherfed.tasks.records import fields
from featherfed.tasks.task import Shape, TargetKind, Task, Values


class Tensor(NamedTuple):
    """Shape of one example's part of a tensor, and its dtype."""

    shape: Shape
    dtype: str


class StepTensors(NamedTuple):
    """What goes into a step and comes out of it, by example.

    `targets`: by the names of their tensors; none if the target is the input. `outputs`: the shapes
    that each answer may have, float32, by the names of their tensors. `names`: those of
    several targets in records of them (tasks/records.py), in the same order.
    """

    inputs: tuple[Tensor, ...]
    targets: dict[str, Tensor]
    outputs: dict[str, tuple[Shape, ...]]
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task) -> StepTensors:
        """Return the tensors of a task's step."""
        several = bool(task.target.parts)
        targets, outputs = {}, {}
        for number, part in enumerate(task.parts):
            end = f"_{number}" if several else ""
            kind = part.target.kind
            dtype = "int32" if kind is TargetKind.CLASS else "float32"
            if kind is not TargetKind.INPUT:
                targets[f"target{end}"] = Tensor(part.target.shape, dtype)
            outputs[f"output{end}"] = part.output_shapes()
        inputs = tuple(Tensor(given.shape, given.dtype) for given in task.inputs)
        return cls(inputs, targets, outputs, task.target.names)

    @classmethod
    def from_json(cls, values: Any) -> StepTensors:
        """Return what was sent as JSON, by a client to its step's process."""
        inputs, targets, outputs, names = values
        return cls(
            tuple(Tensor(tuple(shape), dtype) for shape, dtype in inputs),
            {name: Tensor(tuple(shape), dtype) for name, (shape, dtype) in targets.items()},
            {name: tuple(tuple(shape) for shape in shapes) for name, shapes in outputs.items()},
            tuple(names),
        )

    def target_values(self, targets: Values | None) -> list[Values]:
        """Return the array of each target in the dtype that the step takes; none of the input."""
        if not self.targets or targets is None:
            return []
        parts = zip(fields(targets, self.names), self.targets.values(), strict=True)
        return [values.astype(np.dtype(tensor.dtype), copy=False) for values, tensor in parts]
