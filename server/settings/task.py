"""The section `[task]` of a run file: what is learned, where no evaluation data set says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from featherfed.proto.plan_terms import Loss
from featherfed.server.settings.section import Section
from featherfed.tasks.task import Input, Target, Task

Axis = Annotated[int, Field(ge=1)]


class InputSettings(Section):
    """One input tensor of the model; docs/tasks.md describes each key."""

    name: str
    dtype: str
    """uint8, float32 or int32."""
    shape: tuple[Axis, ...]
    """Of one example."""
    divide_by: float = 255.0
    """uint8: what the model sees is the value divided by this."""
    vocabulary: int = 0
    """int32: number of different tokens."""
    standardize: bool = False
    """float32: to mean 0 and deviation 1 by feature, from sums that clients send."""

    @model_validator(mode="after")
    def _can_be(self) -> InputSettings:
        self.made()
        return self

    def made(self) -> Input:
        """Return it as the task's; raise TaskError if it cannot be."""
        return Input(**self.model_dump())


class TargetSettings(Section):
    """What the model shall answer."""

    kind: str
    """class, labels, values or input."""
    shape: tuple[Axis, ...] = ()
    """Of one example's target."""
    class_names: tuple[str, ...] = ()
    """By number, of classes or labels."""
    standardize: bool = False
    """Values: learn them with mean 0 and deviation 1."""

    @model_validator(mode="after")
    def _can_be(self) -> TargetSettings:
        self.made()
        return self

    def made(self) -> Target:
        """Return it as the task's; raise TaskError if it cannot be."""
        return Target(**self.model_dump())


class TaskSettings(Section):
    """What is learned, in full."""

    inputs: Annotated[tuple[InputSettings, ...], Field(min_length=1)]
    target: TargetSettings
    metrics: tuple[str, ...] = ()
    """By name, the leading one first; by default those that are usual for the target."""

    @model_validator(mode="after")
    def _fit_together(self) -> TaskSettings:
        self.made(None)
        return self

    def made(self, loss: Loss | None) -> Task:
        """Return the task with this loss, None for its usual one; raise TaskError if it cannot be.

        None of its parts but the loss can be wrong: they were checked.
        """
        inputs = tuple(given.made() for given in self.inputs)
        return Task(inputs, self.target.made(), loss, self.metrics)
