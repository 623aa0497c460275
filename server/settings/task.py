"""The section `[task]` of a run file: what is learned, where no evaluation data set says it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from featherfed.proto.plan_terms import Loss
from featherfed.server.settings.section import Section
from featherfed.tasks.errors import TaskError
from featherfed.tasks.task import (
    MAX_TARGETS,
    Input,
    Target,
    TargetKind,
    Task,
    Window,
    table_shape,
    target_table_shape,
)

Axis = Annotated[int, Field(ge=1)]


class InputSettings(Section):
    """One input tensor of the model; docs/tasks.md describes each key."""

    name: str
    """As it is shown, and as an `.npz` may name it."""
    dtype: str
    """uint8, float32 or int32."""
    shape: tuple[Axis, ...] | None = None
    """Of one example; not needed where columns and window give it."""
    columns: tuple[str, ...] = ()
    """Of a table, for clients whose data are tables."""
    divide_by: float = 255.0
    """uint8: what the model sees is the value divided by this."""
    vocabulary: int = 0
    """int32: number of different tokens."""
    standardize: bool = False
    """float32: to mean 0 and deviation 1 by feature, from sums that clients send."""

    @model_validator(mode="after")
    def _can_be(self) -> InputSettings:
        self.made(None)
        return self

    def made(self, window: Window | None) -> Input:
        """Return it as the task's; raise TaskError if it cannot be."""
        shape = self.shape
        if shape is None:
            if not self.columns:
                raise TaskError(f"input {self.name!r} needs a shape, or columns of a table")
            shape = table_shape(self.columns, window)
        return Input(**{**self.model_dump(), "shape": shape})


class TargetSettings(Section):
    """What the model shall answer."""

    kind: str
    """class, labels, values or input."""
    shape: tuple[Axis, ...] | None = None
    """Of one example's target; by default one class, the labels, one value, or that of columns."""
    columns: tuple[str, ...] = ()
    """Of a table, for clients whose data are tables."""
    class_names: tuple[str, ...] = ()
    """By number, of classes or labels."""
    standardize: bool = False
    """Values: learn them with mean 0 and deviation 1."""

    @model_validator(mode="after")
    def _can_be(self) -> TargetSettings:
        self.made(None)
        return self

    def made(self, window: Window | None) -> Target:
        """Return it as the task's; raise TaskError if it cannot be."""
        shape = self.shape
        if shape is None:
            shape = (len(self.class_names),) if self.kind == TargetKind.LABELS else ()
            if self.kind == TargetKind.VALUES and self.columns:
                shape = target_table_shape(self.columns, window)
        return Target(**{**self.model_dump(), "shape": shape})


class PartSettings(TargetSettings):
    """One of several targets; docs/tasks.md describes each key."""

    name: str
    """Of the target, which its metrics and its data are named after."""
    loss: Loss | None = None
    """None: the usual one of its kind."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of its loss in the total loss."""


class WindowSettings(Section):
    """How examples are cut from long series; docs/tasks.md describes each key."""

    length: Axis
    """Rows of an example."""
    stride: Axis = 1
    """Rows from the start of one example to that of the next."""
    horizon: Annotated[int, Field(ge=0)] = 0
    """How many rows after the example are its target; 0: the target of its last row."""
    group: str = ""
    """A column; where its value changes, another series begins."""

    def made(self) -> Window:
        """Return it as the task's; raise TaskError if it cannot be."""
        return Window(**self.model_dump())


class TaskSettings(Section):
    """What is learned, in full."""

    inputs: Annotated[tuple[InputSettings, ...], Field(min_length=1)]
    target: TargetSettings | None = None
    targets: Annotated[tuple[PartSettings, ...], Field(max_length=MAX_TARGETS)] = ()
    """Instead of `target`, one for each of a model's several outputs, in their order."""
    metrics: tuple[str, ...] = ()
    """By name, the leading one first; by default those that are usual for the target."""
    window: WindowSettings | None = None
    """How clients cut examples from the series in their tables."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the values without `targets` where there is but one, as before they could be."""
        values: dict[str, Any] = handler(self)
        del values["target" if self.targets else "targets"]
        return values

    @model_validator(mode="after")
    def _fit_together(self) -> TaskSettings:
        self.made(None)
        return self

    def made(self, loss: Loss | None) -> Task:
        """Return the task with this loss, None for its usual one; raise TaskError if it cannot be.

        None of its parts but the loss can be wrong: they were checked.
        """
        window = None if self.window is None else self.window.made()
        inputs = tuple(given.made(window) for given in self.inputs)
        return Task(inputs, self._target(window), loss, self.metrics, window)

    def _target(self, window: Window | None) -> Target:
        if self.target is not None and self.targets:
            raise TaskError("give task.target, or task.targets for several outputs, not both")
        if self.targets:
            return Target.several(*(part.made(window) for part in self.targets))
        if self.target is None:
            raise TaskError("the task needs task.target, or task.targets for several outputs")
        return self.target.made(window)
