"""Says in words what a task's model takes and what it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from featherfed.report.schema import InputReport, InputTensor, TaskReport

_IN_FILE = (
    "standardised: minus the mean, divided by the standard deviation of its feature (the last "
    "axis); both come in the file"
)


def purpose(task: TaskReport) -> str:
    """Return what a model answers, as a heading: "what an image shows, of 10 classes"."""
    if task.target.parts:
        each = [f"{part.target.name} ({purpose(part)})" for part in task.parts]
        return f"{', '.join(each[:-1])} and {each[-1]}"
    kind, shape, number = task.target.kind, task.target.shape, len(task.target.class_names)
    if task.is_images:
        return f"what an image shows, of {number} classes"
    if kind == "class":
        where = f" for each of {math.prod(shape)} positions" if shape else ""
        return f"one of {number} classes{where}"
    if kind == "labels":
        return f"which of {number} labels apply"
    if kind == "input":
        return f"{task.inputs[0].name} itself again, as an autoencoder gives it"
    return f"{shape_text(shape)} numbers" if math.prod(shape) > 1 else "a number"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape of one example: "8 x 8 x 1", "one value"."""
    return " x ".join(map(str, shape)) or "one value"


def input_text(given: InputReport) -> str:
    """Return what the values of an input are, and what the model sees of them."""
    if given.dtype == "uint8":
        return f"bytes, 0 to 255; the model sees them divided by {given.divide_by:.9g}"
    if given.dtype == "int32":
        return f"tokens, 0 to {given.vocabulary - 1} (a vocabulary of {given.vocabulary})"
    return (
        f"numbers in their own units; the model sees them {_IN_FILE}"
        if given.standardize
        else ("numbers, as they are")
    )


def answer_text(task: TaskReport) -> str:
    """Return what the numbers of a model's answer to a single target mean."""
    target, shape = task.target, shape_text(task.target.shape)
    if target.kind == "class":
        where = f" for each position ({shape})" if target.shape else ""
        one = (
            " (or that of the second class alone, where the model has a single output)"
            if _may_answer_one(task)
            else ""
        )
        return f"One probability a class{where}{one}, in this order"
    if target.kind == "labels":
        return "One probability a label, each by itself, in this order"
    if target.kind == "input":
        return f"{task.inputs[0].name} again, as the model sees it"
    units = (
        "standardised in the file, in the units of the data from Predictor"
        if target.standardize
        else "in the units of the data"
    )
    return f"Numbers, {shape}, {units}" if target.shape else f"One number, {units}"


def reading_code(task: TaskReport) -> str:
    """Return a line of Python that prints what `answers` of a `predictor` say of one example."""
    if task.target.parts:
        return "print({name: answers[name][0] for name in predictor.task.target.names})"
    kind = task.target.kind
    if kind == "class" and _may_answer_one(task):
        chosen = "(answers[0, ..., -1] > 0.5).astype(int).ravel()"
    elif kind == "class":
        chosen = "answers[0].argmax(axis=-1).ravel()"
    elif kind == "labels":
        names = "predictor.task.target.class_names"
        return f"print([name for name, p in zip({names}, answers[0]) if p > 0.5])"
    else:
        return "print(answers[0])"
    return f"print([predictor.task.target.class_names[i] for i in {chosen}])"


def takes_bytes(tensor: InputTensor, given: InputReport) -> bool:
    """Return whether a quantized tensor's own numbers are the bytes of the data themselves."""
    return (
        given.dtype == "uint8"
        and tensor.dtype == "uint8"
        and tensor.zero_point == 0
        and tensor.scale is not None
        and math.isclose(tensor.scale, 1 / given.divide_by, rel_tol=1e-5)
    )


def _may_answer_one(task: TaskReport) -> bool:
    """Return whether one output, the probability of the second of two classes, is possible."""
    return task.loss == "binary_crossentropy" and len(task.target.class_names) == 2
