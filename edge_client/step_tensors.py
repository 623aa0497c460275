"""The tensors that a training step takes of a batch of examples, as the task asks for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from featherfed.tasks.task import Shape, TargetKind, Task, Values


class Tensor(NamedTuple):
    """Shape of one example's part of a tensor, and its dtype."""

    shape: Shape
    dtype: str


class StepTensors(NamedTuple):
    """What goes into a step and comes out of it, by example; `target` is None if it is the input.

    `outputs`: the shapes that answers may have, float32.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor | None
    outputs: tuple[Shape, ...]

    @classmethod
    def of(cls, task: Task) -> StepTensors:
        """Return the tensors of a task's step."""
        kind = task.target.kind
        dtype = "int32" if kind is TargetKind.CLASS else "float32"
        return cls(
            tuple(Tensor(given.shape, given.dtype) for given in task.inputs),
            None if kind is TargetKind.INPUT else Tensor(task.target.shape, dtype),
            task.output_shapes(),
        )

    @classmethod
    def from_json(cls, values: Any) -> StepTensors:
        """Return what was sent as JSON, by a client to its step's process."""
        inputs, target, outputs = values
        return cls(
            tuple(Tensor(tuple(shape), dtype) for shape, dtype in inputs),
            None if target is None else Tensor(tuple(target[0]), target[1]),
            tuple(tuple(shape) for shape in outputs),
        )

    def target_values(self, targets: Values | None) -> Values | None:
        """Return targets in the dtype that the step takes."""
        if self.target is None or targets is None:
            return None
        return targets.astype(np.dtype(self.target.dtype), copy=False)
