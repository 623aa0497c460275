"""A training step in LiteRT's Interpreter, checked against what docs/training-step.md describes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.step_graph import check_graph

Shape = tuple[int, ...]


class TrainingStep:
    """An exported training step and its current weights, in LiteRT's Interpreter."""

    def __init__(
        self,
        content: bytes,
        shapes: Sequence[Shape],
        example_shape: Sequence[int],
        threads: int,
        memory: int | None = None,
    ) -> None:
        """Load a .tflite; raise ClientError if it is not the step of these weights and data.

        `shapes` are the weights', in manifest order. `memory`: most bytes of one tensor.
        """
        # Never LiteRT's CompiledModel, which aborts on a Raspberry Pi 4.
        module = importlib.import_module("ai_edge_litert.interpreter")
        wanted = _Wanted(shapes, tuple(example_shape))
        try:
            check_graph(content, memory)
            self._interpreter: Any = module.Interpreter(
                model_content=content, num_threads=max(1, threads)
            )
            self._inputs, self._outputs = _details(self._interpreter)
            wanted.check(self._inputs, self._outputs)
            self._interpreter.allocate_tensors()  # not before its sizes are known to be right
            # Anew, as operators decide on the shape of what they write.
            wanted.check(*_details(self._interpreter))
        except (ValueError, RuntimeError, TypeError) as error:
            if isinstance(error, ClientError):
                raise
            why = str(error) or "LiteRT does not say why; perhaps memory is short"
            raise ClientError(f"the server's training step cannot be used: {why}") from error
        self._shapes = shapes
        self.batch_size = int(self._inputs["images"]["shape"][0])
        self.masked = {k for k in range(len(shapes)) if f"mask_{k}" in self._inputs}
        """Indices in the manifest of the tensors that the step masks."""
        self._state = [
            (self._inputs[name]["index"], self._outputs[f"new_{name}"]["index"])
            for name in self._inputs
            if name.startswith(("weight_", "slot_"))
        ]
        self._noises = [d for n, d in self._inputs.items() if n.startswith("noise_")]
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
        for name, detail in self._inputs.items():
            kind, _, number = name.partition("_")
            if kind == "weight":
                self._set(name, weights[int(number)])
            elif kind == "mask":  # the interpreter keeps it until the next begin
                mask = masks[int(number)]
                self._view(detail["index"])[...] = 1 if mask is None else mask
            elif kind == "slot":
                self._view(detail["index"])[...] = 0

    def run(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32]
    ) -> tuple[float, float]:
        """Run one step on at most `batch_size` examples; return mean loss and number correct."""
        count = len(images)
        if self._steps:
            for before, after in self._state:
                self._view(before)[...] = self._view(after)
        self._steps += 1
        # A short batch is filled up with its first example, at importance 0.
        rows = np.r_[np.arange(count), np.zeros(self.batch_size - count, np.int64)]
        self._set("images", images[rows])
        self._set("labels", labels[rows])
        self._set("importance", (np.arange(self.batch_size) < count).astype(np.float32))
        self._set("learning_rate", self._rate)
        self._set("step", np.array([self._steps], np.float32))
        for detail in self._noises:
            values = self._noise.random(detail["shape"], dtype=np.float32)
            self._interpreter.set_tensor(detail["index"], values)
        self._interpreter.invoke()
        return self._number("loss"), self._number("correct")

    def weights(self) -> list[Array]:
        """Return copies of the weights after the last step."""
        return [
            np.array(self._view(self._outputs[f"new_weight_{k}"]["index"])).reshape(shape)
            for k, shape in enumerate(self._shapes)
        ]

    def _set(self, name: str, values: npt.NDArray[Any]) -> None:
        detail = self._inputs[name]
        self._interpreter.set_tensor(detail["index"], values.reshape(detail["shape"]))

    def _view(self, index: int) -> npt.NDArray[Any]:
        # Never stored: the interpreter does not run while a view of its memory exists.
        view: npt.NDArray[Any] = self._interpreter.tensor(index)()
        return view

    def _number(self, name: str) -> float:
        return float(self._view(self._outputs[name]["index"])[0])


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    # The runner must be deleted first: the interpreter refuses to allocate while one refers to it.
    runner = interpreter.get_signature_runner("train")
    return runner.get_input_details(), runner.get_output_details()


_Kind = tuple[Shape, str]
"""Shape and dtype of a tensor."""


def _kinds(details: dict[str, Any]) -> dict[str, _Kind]:
    return {
        name: (tuple(map(int, d["shape"])), np.dtype(d["dtype"]).name)
        for name, d in details.items()
    }


class _Wanted:
    """The tensors of docs/training-step.md, for weights and examples of these shapes."""

    def __init__(self, shapes: Sequence[Shape], example_shape: Shape) -> None:
        self._shapes = shapes
        self._example_shape = example_shape

    def check(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Raise ClientError unless these are the wanted tensors, and no others."""
        given, made = _kinds(inputs), _kinds(outputs)
        shape, _ = given.get("images", ((), ""))
        if shape[1:] != self._example_shape or not shape[0]:
            raise ClientError(
                f"the server's training step takes images of shape {shape[1:]}, and this client "
                f"has {self._example_shape}; refused"
            )
        batch = shape[:1]
        weights: dict[str, _Kind] = {
            f"weight_{k}": (shape or (1,), "float32") for k, shape in enumerate(self._shapes)
        }
        wanted: dict[str, _Kind] = {
            "images": (shape, "uint8"),
            "labels": (batch, "int32"),
            "importance": (batch, "float32"),
            "learning_rate": ((1,), "float32"),
            "step": ((1,), "float32"),
            **weights,
        }
        for name, kind in given.items():
            if found := re.fullmatch(r"(?:mask_(\d+)|slot_(\d+)_\d+)", name):
                weight = f"weight_{found[1] or found[2]}"
                if weight in weights:
                    wanted[name] = weights[weight]
            elif re.fullmatch(r"noise_\d+", name):
                wanted[name] = (kind[0], "float32")
        _compare("input", given, wanted)
        state = {f"new_{n}": k for n, k in wanted.items() if n.startswith(("weight_", "slot_"))}
        _compare("output", made, {"loss": ((1,), "float32"), "correct": ((1,), "float32"), **state})


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
