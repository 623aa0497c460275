"""A training step in LiteRT's Interpreter, checked against what docs/training-step.md describes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.step_graph import check_graph
from featherfed.edge_client.step_tensors import StepTensors
from featherfed.proto.step_file import split_step
from featherfed.tasks.task import Values

Shape = tuple[int, ...]
Details = dict[str, Any]
"""LiteRT's descriptions of tensors, by name."""


class TrainingStep:
    """An exported training step and its current weights, in LiteRT's Interpreter."""

    def __init__(
        self,
        content: bytes,
        shapes: Sequence[Shape],
        tensors: StepTensors,
        threads: int,
        memory: int | None = None,
    ) -> None:
        """Load a step's file; raise ClientError if it is not the step of these weights and data.

        `shapes` are the weights', in manifest order. `memory`: most bytes of one tensor.
        """
        wanted = _Wanted(shapes, tensors)
        try:
            parts = split_step(content)
        except ValueError as error:
            raise ClientError(f"the server's training step cannot be used: {error}") from error
        self._train = _Graph(parts.train, "train", wanted.check_training, threads, memory)
        self._answer = _Graph(parts.answer, "answer", wanted.check_answering, threads, memory)
        inputs, outputs = self._train.inputs, self._train.outputs
        self._shapes = shapes
        self._num_inputs = len(tensors.inputs)
        self.batch_size = int(inputs["importance"]["shape"][0])
        if int(self._answer.inputs["importance"]["shape"][0]) != self.batch_size:
            raise ClientError("the server's training step answers to batches of another size")
        self._tensors = tensors
        self.output_shapes = {
            name: tuple(int(size) for size in self._answer.outputs[name]["shape"][1:])
            for name in tensors.outputs
        }
        """Shapes of the answers to one example, by the names of the tensors."""
        self.masked = {k for k in range(len(shapes)) if f"mask_{k}" in inputs}
        """Indices in the manifest of the tensors that the step masks."""
        self._state = [
            (inputs[name]["index"], outputs[f"new_{name}"]["index"])
            for name in inputs
            if name.startswith(("weight_", "slot_"))
        ]
        self._noises = [d for n, d in inputs.items() if n.startswith("noise_")]
        if self._noises:  # imported only if needed, and now, as later no file can be opened
            importlib.import_module("numpy.random")
        self._steps = 0

    def begin(
        self,
        weights: Sequence[Array],
        masks: Sequence[npt.NDArray[np.bool_] | None],
        learning_rate: float,
        noise_seed: Sequence[int],
    ) -> None:
        """Start from these weights, in manifest order, with a fresh optimizer."""
        self._steps = 0
        self._rate = np.array([learning_rate], np.float32)
        if self._noises:
            self._noise = np.random.default_rng(list(noise_seed))
        for name, detail in self._train.inputs.items():
            kind, _, number = name.partition("_")
            if kind == "weight":
                self._train.set(name, weights[int(number)])
            elif kind == "mask":  # the interpreter keeps it until the next begin
                mask = masks[int(number)]
                self._train.view(detail)[...] = 1 if mask is None else mask
            elif kind == "slot":
                self._train.view(detail)[...] = 0

    def run(self, inputs: Sequence[Values], targets: Sequence[Values]) -> float:
        """Run one step on at most `batch_size` examples; return their mean loss.

        `targets`: see `StepTensors.target_values`.
        """
        graph, count = self._train, len(inputs[0])
        if self._steps:
            for before, after in self._state:
                graph.copy(after, before)
        self._steps += 1
        self._set_examples(graph, inputs, count)
        for name, values in zip(self._tensors.targets, targets, strict=True):
            graph.set(name, self._padded(values, count))
        graph.set("learning_rate", self._rate)
        graph.set("step", np.array([self._steps], np.float32))
        for detail in self._noises:
            graph.set_detail(detail, self._noise.random(detail["shape"], dtype=np.float32))
        graph.invoke()
        return float(graph.view(graph.outputs["loss"])[0])

    def weights(self) -> list[Array]:
        """Return copies of the weights after the last step."""
        graph = self._train
        return [
            np.array(graph.view(graph.outputs[f"new_weight_{k}"])).reshape(shape)
            for k, shape in enumerate(self._shapes)
        ]

    def set_answering(self, weights: Sequence[Array]) -> None:
        """Let `answer` use these weights, in manifest order."""
        for k, tensor in enumerate(weights):
            self._answer.set(f"weight_{k}", tensor)

    def answer(self, inputs: Sequence[Values]) -> list[Array]:
        """Return each of the model's answers to at most `batch_size` examples, float32 [N, ...]."""
        graph, count = self._answer, len(inputs[0])
        self._set_examples(graph, inputs, count)
        graph.invoke()
        return [np.array(graph.view(graph.outputs[name])[:count]) for name in self.output_shapes]

    def _set_examples(self, graph: _Graph, inputs: Sequence[Values], count: int) -> None:
        for number, values in enumerate(inputs):
            graph.set(f"input_{number}", self._padded(values, count))
        graph.set("importance", (np.arange(self.batch_size) < count).astype(np.float32))

    def _padded(self, values: Values, count: int) -> Values:
        """Return a short batch filled up with its first example, which has no importance."""
        rows = np.r_[np.arange(count), np.zeros(self.batch_size - count, np.int64)]
        return values[rows]


class _Graph:
    """One .tflite in an interpreter, whose tensors are called by name."""

    def __init__(
        self,
        content: bytes,
        signature: str,
        check: Callable[[Details, Details], None],
        threads: int,
        memory: int | None,
    ) -> None:
        # Never LiteRT's CompiledModel, which aborts on a Raspberry Pi 4.
        module = importlib.import_module("ai_edge_litert.interpreter")
        try:
            check_graph(content, memory)
            self._interpreter: Any = module.Interpreter(
                model_content=content, num_threads=max(1, threads)
            )
            self.inputs, self.outputs = _details(self._interpreter, signature)
            check(self.inputs, self.outputs)
            self._interpreter.allocate_tensors()  # not before its sizes are known to be right
            # Anew, as operators decide on the shape of what they write.
            check(*_details(self._interpreter, signature))
        except (ValueError, RuntimeError, TypeError) as error:
            if isinstance(error, ClientError):
                raise
            why = str(error) or "LiteRT does not say why; perhaps memory is short"
            raise ClientError(f"the server's training step cannot be used: {why}") from error

    def set(self, name: str, values: Values) -> None:
        """Set an input, which may have another shape of as many values."""
        detail = self.inputs[name]
        self.set_detail(detail, values.reshape(detail["shape"]))

    def set_detail(self, detail: dict[str, Any], values: Values) -> None:
        """Set an input of this detail."""
        self._interpreter.set_tensor(detail["index"], values)

    def view(self, detail: dict[str, Any]) -> Values:
        """Return a tensor's memory; not to be kept, as nothing runs while a view exists."""
        return self._view(detail["index"])

    def copy(self, source: int, destination: int) -> None:
        """Copy one tensor to another, by their indices."""
        self._view(destination)[...] = self._view(source)

    def invoke(self) -> None:
        """Run the graph."""
        self._interpreter.invoke()

    def _view(self, index: int) -> Values:
        view: Values = self._interpreter.tensor(index)()
        return view


def _details(interpreter: Any, signature: str) -> tuple[Details, Details]:
    # The runner must be deleted first: the interpreter refuses to allocate while one refers to it.
    runner = interpreter.get_signature_runner(signature)
    return runner.get_input_details(), runner.get_output_details()


_Kind = tuple[Shape, str]
"""Shape and dtype of a tensor."""


def _kinds(details: Details) -> dict[str, _Kind]:
    return {
        name: (tuple(map(int, d["shape"])), np.dtype(d["dtype"]).name)
        for name, d in details.items()
    }


class _Wanted:
    """The tensors of docs/training-step.md, for weights and examples of these shapes."""

    def __init__(self, shapes: Sequence[Shape], tensors: StepTensors) -> None:
        self._tensors = tensors
        self._weights: dict[str, _Kind] = {
            f"weight_{k}": (shape or (1,), "float32") for k, shape in enumerate(shapes)
        }

    def check_training(self, inputs: Details, outputs: Details) -> None:
        """Raise ClientError unless these are the tensors of training, and no others."""
        given, made = _kinds(inputs), _kinds(outputs)
        batch = _batch(given)
        targets = self._tensors.targets
        wanted: dict[str, _Kind] = {
            **self._examples(batch),
            **{name: ((*batch, *tensor.shape), tensor.dtype) for name, tensor in targets.items()},
            "learning_rate": ((1,), "float32"),
            "step": ((1,), "float32"),
            **self._weights,
        }
        for name, kind in given.items():
            if found := re.fullmatch(r"(?:mask_(\d+)|slot_(\d+)_\d+)", name):
                weight = f"weight_{found[1] or found[2]}"
                if weight in self._weights:
                    wanted[name] = self._weights[weight]
            elif re.fullmatch(r"noise_\d+", name):
                wanted[name] = (kind[0], "float32")
        _compare("input", given, wanted)
        state = {f"new_{n}": k for n, k in wanted.items() if n.startswith(("weight_", "slot_"))}
        _compare("output", made, {"loss": ((1,), "float32"), **state})

    def check_answering(self, inputs: Details, outputs: Details) -> None:
        """Raise ClientError unless these are the tensors of inference, and no others."""
        given, made = _kinds(inputs), _kinds(outputs)
        batch = _batch(given)
        _compare("input", given, {**self._examples(batch), **self._weights})
        wanted: dict[str, _Kind] = {}
        for name, shapes in self._tensors.outputs.items():
            possible = [(*batch, *shape) for shape in shapes]
            shape = made.get(name, (possible[0], ""))[0]
            wanted[name] = (shape if shape in possible else possible[0], "float32")
        _compare("output", made, wanted)

    def _examples(self, batch: Shape) -> dict[str, _Kind]:
        inputs: dict[str, _Kind] = {
            f"input_{n}": ((*batch, *tensor.shape), tensor.dtype)
            for n, tensor in enumerate(self._tensors.inputs)
        }
        return {**inputs, "importance": (batch, "float32")}


def _batch(given: dict[str, _Kind]) -> Shape:
    """Return [B], which `importance` has for its shape."""
    shape = given.get("importance", ((1,), ""))[0]
    return shape if len(shape) == 1 and shape[0] > 0 else (1,)


def _compare(what: str, found: dict[str, _Kind], wanted: dict[str, _Kind]) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) == wanted.get(name):
            continue
        raise ClientError(
            f"the server's training step has {_text(found.get(name))} as its {what} {name!r}, and "
            f"this client wants {_text(wanted.get(name))}; refused (is featherfed older here than "
            "on the server?)"
        )


def _text(kind: _Kind | None) -> str:
    return "nothing" if kind is None else f"{kind[1]} of shape {kind[0]}"
