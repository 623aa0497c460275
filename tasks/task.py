"""A learning task: what a model takes, what it shall answer, and how answers are measured.

Everything that depends on what is learned follows from it: training, evaluation, the files of a
run, its pages. docs/tasks.md describes it.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.proto.plan_terms import Loss
from featherfed.tasks.arrays import in_parts
from featherfed.tasks.errors import TaskError

Values = npt.NDArray[Any]
"""An array of examples: the first axis counts them."""
Shape = tuple[int, ...]

DTYPES = ("uint8", "float32", "int32")
"""What inputs may be: bytes such as pixels, physical quantities, tokens."""
MAX_INPUTS = 16
MAX_TARGETS = 16
MAX_METRICS = 16
"""Most metrics of a target."""
MAX_WEIGHT = 1e6
"""Largest weight of a target's loss, and one by the smallest."""
MAX_AXES = 6
MAX_SIZE = 2**26
"""Most values of one example."""
MAX_CLASSES = 2**16
MAX_TARGET_NAME = 40
_TARGET_NAME = re.compile(r"[A-Za-z]\w{0,39}", re.ASCII)
MAX_NAME = 100
"""Most characters of a name of an input, a class or a metric."""


class TargetKind(enum.StrEnum):
    """What a model shall answer."""

    CLASS = "class"
    """One class of several, for an example or for each of its positions; integers."""
    LABELS = "labels"
    """Any number of labels, each 0 or 1."""
    VALUES = "values"
    """Numbers: one, a vector or a sequence; float32."""
    INPUT = "input"
    """The first input itself, as the model sees it: autoencoders."""
    SEVERAL = "several"
    """An answer for each of several targets, which have names."""


@dataclass(frozen=True)
class Input:
    """One input tensor of a model.

    `shape`: of one example. A uint8 input reaches the model as float32 divided by `divide_by`, a
    float32 input as it is, or standardised (mean 0, deviation 1 by feature, which is the last
    axis) if `standardize`, an int32 input as tokens from 0 to `vocabulary` - 1. `columns`: those of
    a table that its last axis consists of, for clients whose data are tables.
    """

    name: str
    dtype: str
    shape: Shape
    divide_by: float = 255.0
    vocabulary: int = 0
    standardize: bool = False
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "columns", tuple(self.columns))
        where = f"input {self.name!r}"
        _check_name(self.name, "an input")
        _check_shape(self.shape, where)
        if self.dtype not in DTYPES:
            raise TaskError(f"{where}: no dtype {self.dtype!r}; use one of {', '.join(DTYPES)}")
        if not 0 < self.divide_by < math.inf:
            raise TaskError(f"{where}: divide_by must be above 0, not {self.divide_by}")
        if self.standardize and self.dtype != "float32":
            raise TaskError(f"{where}: only float32 inputs can be standardised, not {self.dtype}")
        _check_columns(self.columns, self.shape, where)
        if self.dtype == "int32" and not 1 <= self.vocabulary <= MAX_SIZE:
            raise TaskError(f"{where}: tokens need a vocabulary: how many different ones there are")

    @property
    def num_features(self) -> int:
        """Length of the last axis, 1 if an example is one number."""
        return self.shape[-1] if self.shape else 1

    def check(self, values: Values) -> None:
        """Raise TaskError unless `values` [N, *shape] fit."""
        if values.dtype.name != self.dtype or values.shape[1:] != self.shape:
            raise TaskError(
                f"input {self.name!r} must be {self.dtype} {_shape_text(self.shape)}, not "
                f"{values.dtype} {_shape_text(values.shape[1:])}"
            )
        if self.dtype == "float32":
            _check_finite(values, f"input {self.name!r}")
        if self.dtype == "int32" and values.size:
            low, high = _range(values)
            if low < 0 or high >= self.vocabulary:
                raise TaskError(
                    f"input {self.name!r} holds tokens from {low} to {high}; the task's vocabulary "
                    f"has 0 to {self.vocabulary - 1}"
                )

    def seen(self, values: Values) -> Values:
        """Return prepared values (see `Task.prepare`) as the model sees them."""
        if self.dtype == "uint8":
            scaled: Values = values.astype(np.float32) / np.float32(self.divide_by)
            return scaled
        return values


@dataclass(frozen=True)
class Target:
    """What a model shall answer.

    `shape`: of one example's target: () or [T] for classes, [number of labels] for labels, any for
    values, none for the input itself. `class_names`: by number, of classes or labels. With
    `standardize`, values are standardised while they are learned, and scores are in their units.
    `columns`: those of a table that hold the targets.

    One of several targets has a `name`, a `loss` (None: its usual one) and a `weight` of it in the
    total loss. `parts`: the targets that one of kind several consists of; see `Target.several`.
    """

    kind: TargetKind
    shape: Shape = ()
    class_names: tuple[str, ...] = ()
    standardize: bool = False
    columns: tuple[str, ...] = ()
    name: str = ""
    loss: Loss | None = None
    weight: float = 1.0
    parts: tuple[Target, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "kind", _kind(self.kind))
        object.__setattr__(self, "parts", tuple(self.parts))
        if self.loss is not None:
            object.__setattr__(self, "loss", _loss(self.loss))
        if self.kind is TargetKind.SEVERAL:
            self._check_several()
            return
        self._check_own_words()
        _check_shape(self.shape, "the target")
        self._check_class_names()
        if self.kind is TargetKind.LABELS and self.shape != (len(self.class_names),):
            raise TaskError(
                f"labels need the shape [{len(self.class_names)}], one value for each name"
            )
        if self.kind is TargetKind.INPUT and self.shape:
            raise TaskError("a target of kind input has the input's shape; give none")
        for name in self.columns:
            _check_name(name, "a column")
        if self.kind in (TargetKind.CLASS, TargetKind.INPUT) and len(self.columns) > 1:
            raise TaskError(f"a target of kind {self.kind} is read from one column at most")
        if self.standardize and self.kind is not TargetKind.VALUES:
            raise TaskError(f"only values can be standardised, not a target of kind {self.kind}")

    def _check_own_words(self) -> None:
        """Raise TaskError unless name and weight can be those of one of several targets."""
        if self.parts:
            raise TaskError(f"a target of kind {self.kind} has no further targets")
        if self.name and not _TARGET_NAME.fullmatch(self.name):
            raise TaskError(
                f"{self.name!r:.120} cannot be the name of a target; use a letter, and at most "
                f"{MAX_TARGET_NAME - 1} letters, digits and underscores after it"
            )
        if not 1 / MAX_WEIGHT <= self.weight <= MAX_WEIGHT:
            raise TaskError(
                f"{self.weight:g} cannot be the weight of a loss; use {1 / MAX_WEIGHT:g} to "
                f"{MAX_WEIGHT:g}"
            )

    def _check_class_names(self) -> None:
        names = self.class_names
        if self.kind in (TargetKind.CLASS, TargetKind.LABELS):
            least = 2 if self.kind is TargetKind.CLASS else 1
            if not least <= len(names) <= MAX_CLASSES or len(set(names)) != len(names):
                raise TaskError(
                    f"a target of kind {self.kind} needs {least} to {MAX_CLASSES} different class "
                    f"names, not {len(names)}"
                )
            for name in names:
                _check_name(name, "a class")
        elif names:
            raise TaskError(f"a target of kind {self.kind} has no class names")

    @classmethod
    def several(cls, *targets: Target) -> Target:
        """Return the target of a model with several outputs: one target for each, in their order.

        Each has a name of its own. Raises TaskError for fewer than two, or too many.
        """
        return cls(TargetKind.SEVERAL, parts=targets)

    def _check_several(self) -> None:
        """Raise TaskError unless this is nothing but several targets with names."""
        own = (self.shape, self.class_names, self.standardize, self.columns, self.loss)
        if any(own) or self.name or self.weight != 1:
            raise TaskError(
                "several targets have shape, class names, columns, loss and weight each by itself; "
                "give them there"
            )
        if not 2 <= len(self.parts) <= MAX_TARGETS:
            raise TaskError(
                f"a task of several targets has 2 to {MAX_TARGETS} of them, not {len(self.parts)}"
                + ("; give a single one as the target" if len(self.parts) == 1 else "")
                + ("; a run file lists them, [[task.targets]]" if not self.parts else "")
            )
        for part in self.parts:
            if part.kind in (TargetKind.INPUT, TargetKind.SEVERAL):
                raise TaskError(
                    f"a target of kind {part.kind} cannot be one of several; use class, labels or "
                    "values"
                )
            if not part.name:
                raise TaskError("one of several targets has no name; give each its own")
        if len({name.lower() for name in self.names}) < len(self.parts):
            raise TaskError(
                f"two targets have one name: {', '.join(self.names)}; give each its own"
            )

    @property
    def each(self) -> tuple[Target, ...]:
        """The targets that there are, in the order of the model's outputs: this one if alone."""
        return self.parts or (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of several targets; none if there is but one."""
        return tuple(part.name for part in self.parts)

    @property
    def num_features(self) -> int:
        """Length of the last axis of values, 1 if the target is one number."""
        return self.shape[-1] if self.shape else 1

    @property
    def dtype(self) -> str:
        """The dtype of stored targets, empty if there are none."""
        return _TARGET_DTYPES[self.kind]

    def check(self, values: Values | None, count: int) -> None:
        """Raise TaskError unless `values` are targets of `count` examples.

        Those of several targets are records (see records.py) by their names.
        """
        if self.parts:
            self._check_records(values, count)
            return
        if values is None or self.kind is TargetKind.INPUT:
            if (values is None) != (self.kind is TargetKind.INPUT):
                raise TaskError(
                    f"the data have no targets, and the task needs them ({self.kind})"
                    if values is None
                    else "the data have targets, but the task's target is the input; drop them"
                )
            return
        if values.dtype.name != self.dtype or values.shape != (count, *self.shape):
            raise TaskError(
                f"targets must be {self.dtype} {_shape_text(self.shape)} for each of {count} "
                f"examples, not {values.dtype} of shape {values.shape}"
            )
        if self.kind is TargetKind.VALUES:
            _check_finite(values, "the target")
        elif values.size:
            top = len(self.class_names) if self.kind is TargetKind.CLASS else 2
            low, high = _range(values)
            if low < 0 or high >= top:
                raise TaskError(f"targets go from {low} to {high}; the task has 0 to {top - 1}")

    def _check_records(self, values: Values | None, count: int) -> None:
        if values is None or values.dtype.names != self.names:
            found = "none" if values is None else ", ".join(values.dtype.names or ()) or "one array"
            raise TaskError(
                f"the task has the targets {', '.join(self.names)}, and the data have {found}"
            )
        for part in self.parts:
            try:
                part.check(values[part.name], count)
            except TaskError as error:
                raise TaskError(f"target {part.name!r}: {error}") from error


@dataclass(frozen=True)
class Window:
    """How examples are cut from the rows of a long series.

    An example is `length` rows, the next one begins `stride` rows later. With a `horizon` its
    target is the `horizon` rows after it; without, the target of its last row. Rows with another
    value in the column `group` (empty: none) belong to another series.
    """

    length: int
    stride: int = 1
    horizon: int = 0
    group: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.length <= MAX_SIZE or not 1 <= self.stride <= MAX_SIZE:
            raise TaskError(
                f"a window of {self.length} rows every {self.stride} rows is not possible; both "
                "are at least 1"
            )
        if not 0 <= self.horizon <= MAX_SIZE:
            raise TaskError(f"a horizon of {self.horizon} rows is not possible; 0 or more are")
        if self.group:
            _check_name(self.group, "a column")


@dataclass(frozen=True)
class Task:
    """What is learned: inputs, target, loss, and the metrics by name, the leading one first.

    Without a loss or metrics it gets those that are usual for its target. `window`: for clients
    whose data are a table of one or more series. Raises TaskError for what does not go together.

    Of several targets (`Target.several`) each has its own loss, and `loss` stays None; a metric is
    named after the target it measures, such as `pulse_mae`.
    """

    inputs: tuple[Input, ...]
    target: Target
    loss: Loss | None = None
    metrics: tuple[str, ...] = field(default=())
    window: Window | None = None

    def __post_init__(self) -> None:
        # Here, as metrics look at tasks.
        from featherfed.tasks.metrics import DEFAULT_METRICS, metric

        kind = self.target.kind
        object.__setattr__(self, "inputs", tuple(self.inputs))
        self._check_inputs()
        if kind is TargetKind.SEVERAL:
            self._take_several()
            return
        if (self.target.name, self.target.loss, self.target.weight) != ("", None, 1.0):
            raise TaskError(
                "a single target has no name, loss or weight of its own; give the task the loss, "
                "or use Target.several for several targets"
            )
        object.__setattr__(self, "loss", _loss(self.loss or _LOSSES[kind][0]))
        object.__setattr__(self, "metrics", tuple(self.metrics) or DEFAULT_METRICS[kind])
        if self.loss not in _LOSSES[kind]:
            raise TaskError(
                f"the loss {self.loss} does not fit a target of kind {kind}; use one of "
                f"{', '.join(_LOSSES[kind])}"
            )
        if kind is TargetKind.INPUT and self.inputs[0].dtype == "int32":
            raise TaskError("tokens cannot be answered as the input; use a target of kind class")
        if len(set(self.metrics)) < len(self.metrics):
            raise TaskError(f"a metric is named twice: {', '.join(self.metrics)}")
        for name in self.metrics:
            metric(name).check(self)
        self._check_table()

    def _check_inputs(self) -> None:
        if not 1 <= len(self.inputs) <= MAX_INPUTS:
            raise TaskError(f"a task has 1 to {MAX_INPUTS} inputs, not {len(self.inputs)}")
        if len({given.name for given in self.inputs}) < len(self.inputs):
            raise TaskError("two inputs have one name; give each its own")

    def _take_several(self) -> None:
        """Take each target's loss and metrics; raise TaskError for what does not go together."""
        from featherfed.tasks.metrics import DEFAULT_METRICS, split_name

        if self.loss is not None:
            raise TaskError(
                f"with several targets each has its own loss; give {self.loss} with the target "
                "that it is for, not for all"
            )
        if self.window and self.window.horizon:
            raise TaskError(
                "a horizon is for a single target of kind values; leave it out, or forecast all "
                "columns as one target"
            )
        targets, names = self.target.parts, self.target.names
        usual = [f"{t.name}_{metric}" for t in targets for metric in DEFAULT_METRICS[t.kind]]
        object.__setattr__(self, "metrics", tuple(self.metrics) or tuple(usual))
        if len(set(self.metrics)) < len(self.metrics):
            raise TaskError(f"a metric is named twice: {', '.join(self.metrics)}")
        if len(self.metrics) > MAX_METRICS * len(targets):
            raise TaskError(
                f"{len(self.metrics)} metrics; at most {MAX_METRICS} for each target are possible"
            )
        for name in self.metrics:
            if split_name(name)[0] not in names:
                raise TaskError(
                    f"the metric {name!r:.120} is of no target; with several of them, a metric is "
                    f"named after its target, such as {usual[0]} (targets: {', '.join(names)})"
                )
        with_losses = [
            replace(target, loss=part.loss)
            for target, part in zip(targets, self.parts, strict=True)
        ]
        object.__setattr__(self, "target", Target.several(*with_losses))

    @cached_property
    def parts(self) -> tuple[Task, ...]:
        """The task of each target alone, in the order of the model's outputs."""
        if self.target.kind is not TargetKind.SEVERAL:
            return (self,)
        return tuple(self._part(target) for target in self.target.parts)

    def _part(self, target: Target) -> Task:
        from featherfed.tasks.metrics import split_name

        own = [split_name(name) for name in self.metrics]
        try:
            return Task(
                self.inputs,
                replace(target, name="", loss=None, weight=1.0),
                target.loss,
                tuple(metric for owner, metric in own if owner == target.name),
                self.window,
            )
        except TaskError as error:
            raise TaskError(f"target {target.name!r}: {error}") from error

    def _check_table(self) -> None:
        """Raise TaskError unless columns and window give the tensors' shapes."""
        window, target = self.window, self.target
        for given in self.inputs:
            wanted = table_shape(given.columns, window)
            if (given.columns or window) and given.shape != wanted:
                raise TaskError(
                    f"input {given.name!r}: {len(given.columns)} columns"
                    f"{' in windows' if window else ''} give the shape {_shape_text(wanted)}, not "
                    f"{_shape_text(given.shape)}"
                )
        if target.columns and target.kind is TargetKind.VALUES:
            wanted = target_table_shape(target.columns, window)
            if target.shape != wanted:
                raise TaskError(
                    f"the target's columns give the shape {_shape_text(wanted)}, not "
                    f"{_shape_text(target.shape)}"
                )
        if target.columns and target.kind is TargetKind.CLASS and target.shape:
            raise TaskError(
                f"the target's column gives one class, [], not {_shape_text(target.shape)}"
            )
        if target.columns and target.kind is TargetKind.LABELS:
            labels, columns = len(target.class_names), len(target.columns)
            if labels != columns:
                raise TaskError(f"{labels} labels are read from {labels} columns, not {columns}")
        if window and window.horizon and target.kind is not TargetKind.VALUES:
            raise TaskError("a horizon is for a target of kind values; leave it out")

    @property
    def leading(self) -> str:
        """The name of the metric that decides which of two models is better."""
        return self.metrics[0]

    @property
    def standardizes(self) -> bool:
        """Whether means and deviations of the clients' data are needed before the first round."""
        parts: tuple[Input | Target, ...] = (*self.inputs, *self.target.each)
        return any(part.standardize for part in parts)

    @property
    def loss_text(self) -> str:
        """The loss by name, of several targets as a sum."""
        if not self.target.parts:
            return str(self.loss)
        return " + ".join(
            f"{'' if part.weight == 1 else f'{part.weight:g} '}{part.loss} ({part.name})"
            for part in self.target.parts
        )

    @property
    def is_images(self) -> bool:
        """Whether the task is to tell classes of pictures apart, uint8 [H, W, 1 or 3]."""
        first = self.inputs[0]
        return (
            len(self.inputs) == 1
            and first.dtype == "uint8"
            and len(first.shape) == 3
            and first.shape[2] in (1, 3)
            and self.target.kind is TargetKind.CLASS
            and not self.target.shape
        )

    @property
    def target_shape(self) -> Shape:
        """Shape of one example's target, the input's if that is the target."""
        kind = self.target.kind
        return self.inputs[0].shape if kind is TargetKind.INPUT else self.target.shape

    def output_shapes(self) -> tuple[Shape, ...]:
        """Return the shapes that a model's answer to one example may have, for a single target."""
        target = self.target
        if target.kind is not TargetKind.CLASS:
            shape = self.target_shape
            return (shape, (1,)) if shape == () else (shape,)
        number = len(target.class_names)
        shapes = [(*target.shape, number)]
        if number == 2 and self.loss is Loss.BINARY_CROSSENTROPY:  # the probability of class 1
            shapes.append((*target.shape, 1))
        return tuple(shapes)

    def check_inputs(self, inputs: Sequence[Values]) -> int:
        """Return the number of examples; raise TaskError, naming the tensor, if they do not fit."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(given.name for given in self.inputs)
            raise TaskError(f"the data have {len(inputs)} inputs; the task needs {names}")
        for given, values in zip(self.inputs, inputs, strict=True):
            given.check(values)
        counts = {len(values) for values in inputs}
        if len(counts) != 1:
            raise TaskError(f"the inputs hold different numbers of examples: {sorted(counts)}")
        return counts.pop()

    def check_data(self, inputs: Sequence[Values], targets: Values | None) -> None:
        """Raise TaskError, naming the tensor, unless the examples fit the task."""
        self.target.check(targets, self.check_inputs(inputs))

    def check_model(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> None:
        """Raise TaskError unless a model of these shapes (of one example) can learn the task."""
        wanted = [given.shape for given in self.inputs]
        if [tuple(shape) for shape in inputs] != wanted:
            raise TaskError(
                f"the model takes {_shapes_text(inputs)}, the task gives {_shapes_text(wanted)}; "
                "change the model's input or the task's"
            )
        if self.target.parts:
            self._check_outputs(outputs)
        elif len(outputs) != 1 or tuple(outputs[0]) not in self.output_shapes():
            possible = " or ".join(_shape_text(shape) for shape in self.output_shapes())
            raise TaskError(
                f"the model answers with {_shapes_text(outputs)}, the task needs {possible} "
                f"({self.target.kind}); change the model's last layer" + self._binary_hint(outputs)
            )

    def _check_outputs(self, outputs: Sequence[Shape]) -> None:
        """Raise TaskError unless a model's outputs are the answers to the targets, in order."""
        names = self.target.names
        if len(outputs) != len(names):
            raise TaskError(
                f"the model has {len(outputs)} outputs ({_shapes_text(outputs)}), and the task the "
                f"targets {', '.join(names)}; give the model an output for each, in this order"
            )
        for name, part, output in zip(names, self.parts, outputs, strict=True):
            if tuple(output) not in part.output_shapes():
                possible = " or ".join(_shape_text(shape) for shape in part.output_shapes())
                raise TaskError(
                    f"for the target {name!r} the model answers with {_shape_text(output)}, the "
                    f"task needs {possible} ({part.target.kind}); change that output's layer, or "
                    "the order of the targets" + part._binary_hint([output])
                )

    def _binary_hint(self, outputs: Sequence[Shape]) -> str:
        binary = self.target.kind is TargetKind.CLASS and len(self.target.class_names) == 2
        if binary and len(outputs) == 1 and tuple(outputs[0]) == (*self.target.shape, 1):
            return f", or use the loss {Loss.BINARY_CROSSENTROPY}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Return the task as plain JSON values; `from_dict` reads it."""
        return {
            "inputs": [
                {
                    "name": given.name,
                    "dtype": given.dtype,
                    "shape": list(given.shape),
                    **({"divide_by": given.divide_by} if given.dtype == "uint8" else {}),
                    **({"vocabulary": given.vocabulary} if given.dtype == "int32" else {}),
                    **({"standardize": True} if given.standardize else {}),
                    **({"columns": list(given.columns)} if given.columns else {}),
                }
                for given in self.inputs
            ],
            **(
                {"targets": [_target_dict(part) for part in self.target.parts]}
                if self.target.parts
                else {"target": _target_dict(self.target), "loss": str(self.loss)}
            ),
            "metrics": list(self.metrics),
            **({"window": asdict(self.window)} if self.window else {}),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Task:
        """Return the task that `as_dict` gave; raise TaskError for anything else."""
        try:
            several = values.get("targets")
            if several is not None and len(several) > MAX_TARGETS:
                raise TaskError(f"{len(several)} targets; a task has at most {MAX_TARGETS}")
            return cls(
                tuple(Input(**given) for given in values["inputs"]),
                Target(**values["target"])
                if several is None
                else Target.several(*(Target(**given) for given in several)),
                values["loss"] if several is None else None,
                tuple(values["metrics"]),
                Window(**values["window"]) if values.get("window") else None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise TaskError(f"this is no task: {error}") from error


def image_task(shape: Sequence[int], class_names: Sequence[str], loss: Loss | None = None) -> Task:
    """Return the task to tell pictures [H, W, C] apart by class, by their accuracy."""
    return Task(
        (Input("image", "uint8", tuple(shape)),),
        Target(TargetKind.CLASS, (), tuple(class_names)),
        loss,
    )


def _target_dict(target: Target) -> dict[str, Any]:
    return {
        **({"name": target.name} if target.name else {}),
        "kind": target.kind.value,
        "shape": list(target.shape),
        **({"class_names": list(target.class_names)} if target.class_names else {}),
        **({"standardize": True} if target.standardize else {}),
        **({"columns": list(target.columns)} if target.columns else {}),
        **({"loss": str(target.loss), "weight": target.weight} if target.name else {}),
    }


def table_shape(columns: Sequence[str], window: Window | None) -> Shape:
    """Return the shape of an input that is read from these columns of a table."""
    return (len(columns),) if window is None else (window.length, len(columns))


def target_table_shape(columns: Sequence[str], window: Window | None) -> Shape:
    """Return the shape of values that are read from these columns of a table."""
    each = () if len(columns) == 1 else (len(columns),)
    return (window.horizon, *each) if window is not None and window.horizon else each


_TARGET_DTYPES = {
    TargetKind.CLASS: "int64",
    TargetKind.LABELS: "uint8",
    TargetKind.VALUES: "float32",
    TargetKind.INPUT: "",
    TargetKind.SEVERAL: "",
}
_OF_VALUES = (Loss.MEAN_SQUARED_ERROR, Loss.MEAN_ABSOLUTE_ERROR, Loss.HUBER)
_LOSSES: dict[TargetKind, tuple[Loss, ...]] = {
    TargetKind.CLASS: (
        Loss.SPARSE_CATEGORICAL_CROSSENTROPY,
        Loss.CATEGORICAL_CROSSENTROPY,
        Loss.BINARY_CROSSENTROPY,
        Loss.MEAN_SQUARED_ERROR,
    ),
    TargetKind.LABELS: (Loss.BINARY_CROSSENTROPY, Loss.MEAN_SQUARED_ERROR),
    TargetKind.VALUES: _OF_VALUES,
    TargetKind.INPUT: (*_OF_VALUES, Loss.BINARY_CROSSENTROPY),
}
"""The losses that fit a target, the usual one first."""


def _kind(value: str) -> TargetKind:
    try:
        return TargetKind(value)
    except ValueError:
        raise TaskError(
            f"no kind of target {value!r}; use one of {', '.join(TargetKind)}"
        ) from None


def _loss(value: str) -> Loss:
    try:
        return Loss(value)
    except ValueError as error:
        raise TaskError(str(error)) from None


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise TaskError(
            f"{name!r:.120} cannot be the name of {what}; use 1 to {MAX_NAME} printable characters"
        )


def _check_columns(columns: tuple[str, ...], shape: Shape, where: str) -> None:
    for name in columns:
        _check_name(name, "a column")
    if len(set(columns)) < len(columns):
        raise TaskError(f"{where}: a column is named twice: {', '.join(columns)}")
    if columns and (not shape or shape[-1] != len(columns)):
        raise TaskError(f"{where}: {len(columns)} columns do not give {_shape_text(shape)}")


def _check_shape(shape: Shape, where: str) -> None:
    if len(shape) > MAX_AXES or any(n < 1 for n in shape) or math.prod(shape) > MAX_SIZE:
        raise TaskError(
            f"{where}: the shape {_shape_text(shape)} is not possible; an example has at most "
            f"{MAX_AXES} axes and {MAX_SIZE} values, and no empty axis"
        )


def _check_finite(values: Values, where: str) -> None:
    first = 0
    for part in in_parts(values):
        # The sum tells without an array of flags; it overflows only where values are absurd.
        if part.size and not np.isfinite(part.sum(dtype=np.float64)):
            at = np.argwhere(~np.isfinite(part))
            place = f"example {first + at[0][0]}" if len(at) else "its sum"
            raise TaskError(f"{where} is not finite ({place}); fill or drop missing values")
        first += len(part)


def _range(values: Values) -> tuple[int, int]:
    """Return the least and the largest of integers."""
    ends = [(int(part.min()), int(part.max())) for part in in_parts(values)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _shapes_text(shapes: Sequence[Sequence[int]]) -> str:
    return " and ".join(_shape_text(shape) for shape in shapes) or "nothing"
