"""A server's .tflite of the final model in LiteRT's Interpreter: its answers, and its ranges."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.step_graph import check_model_graph, float_tensors
from featherfed.edge_client.step_tensors import StepTensors, Tensor
from featherfed.tasks.task import Values

MAX_TENSORS = 1 << 16
"""Most tensors of a file that are measured."""


class ModelInterpreter:
    """A model file, run one example at a time; inputs are what the model sees.

    Every value of a run is kept until the next one if the file is to be measured.
    """

    def __init__(
        self,
        content: bytes,
        tensors: StepTensors,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int,
        memory: int | None = None,
        measured: bool = False,
    ) -> None:
        """Load a file; raise ClientError if it is not the model of a task.

        `inputs`, `outputs`: places of the task's in the file. `memory`: most bytes of one tensor.
        """
        self._tensors = tensors
        try:
            check_model_graph(content, memory)
            self._measured = float_tensors(content) if measured else []
            self._interpreter = _interpreter(content, threads, measured)
            self._check(inputs, outputs)
            self._interpreter.allocate_tensors()  # not before its sizes are known to be right
            self._check(
                inputs, outputs
            )  # anew, as operators decide on the shape of what they write
        except (ValueError, RuntimeError, TypeError) as error:
            if isinstance(error, ClientError):
                raise
            why = str(error) or "LiteRT does not say why; perhaps memory is short"
            raise _refusal(why) from error
        if len(self._measured) > MAX_TENSORS:
            raise _refusal(f"it has {len(self._measured)} tensors to measure")
        self._lows = np.full(len(self._measured), np.inf, np.float32)
        self._highs = -self._lows

    @property
    def num_measured(self) -> int:
        """Number of tensors that are measured."""
        return len(self._measured)

    def _check(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Raise ClientError unless the file has the task's inputs and outputs."""
        tensors, interpreter = self._tensors, self._interpreter
        self._inputs = _chosen("inputs", interpreter.get_input_details(), inputs, tensors.inputs)
        for detail, tensor in zip(self._inputs, tensors.inputs, strict=True):
            _check_tensor("input", detail, (tensor.shape,), tensor.dtype)
        self._outputs = _chosen(
            "outputs", interpreter.get_output_details(), outputs, tensors.outputs
        )
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        """Shapes of the answers to one example, by the names of the tensors."""
        for detail, (name, shapes) in zip(self._outputs, tensors.outputs.items(), strict=True):
            _check_tensor("output", detail, shapes, "float32")
            self.output_shapes[name] = tuple(int(size) for size in detail["shape"][1:])

    def answer(self, inputs: Sequence[Values]) -> list[Array]:
        """Return each answer to examples, float32 [N, ...]; measure what leads to it if asked."""
        count = len(inputs[0])
        answers = [np.empty((count, *s), np.float32) for s in self.output_shapes.values()]
        for number in range(count):
            for detail, values in zip(self._inputs, inputs, strict=True):
                example = _encoded(values[number : number + 1], detail)
                self._interpreter.set_tensor(detail["index"], example)
            self._interpreter.invoke()
            for made, detail in zip(answers, self._outputs, strict=True):
                found = self._interpreter.get_tensor(detail["index"])
                made[number] = _decoded(found, detail)[0]
            for place, index in enumerate(self._measured):
                values = self._interpreter.get_tensor(index)
                if values.size:  # NaN stays NaN
                    self._lows[place] = np.minimum(self._lows[place], values.min())
                    self._highs[place] = np.maximum(self._highs[place], values.max())
        return answers

    def ranges(self) -> Array:
        """Return the smallest and largest value of each measured tensor, float32 [tensors, 2]."""
        return np.stack([self._lows, self._highs], axis=1)


def seen_tensors(tensors: StepTensors) -> StepTensors:
    """Return a task's tensors as a model sees them: bytes become float32."""
    inputs = (t if t.dtype == "int32" else Tensor(t.shape, "float32") for t in tensors.inputs)
    return tensors._replace(inputs=tuple(inputs))


def _interpreter(content: bytes, threads: int, measured: bool) -> Any:
    try:
        module = importlib.import_module("ai_edge_litert.interpreter")
    except ImportError:  # a client with TensorFlow alone; this is a process of its own
        module = importlib.import_module("tensorflow.lite.python.interpreter")
    # A delegate would keep to itself what lies between the operators that it takes over.
    resolver = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        return module.Interpreter(
            model_content=content,
            num_threads=max(1, threads),
            experimental_preserve_all_tensors=measured,
            **({"experimental_op_resolver_type": resolver} if measured else {}),
        )


def _chosen(
    what: str, details: Sequence[dict[str, Any]], places: Sequence[int], wanted: Sized
) -> list[dict[str, Any]]:
    if sorted(places) != list(range(len(wanted))) or len(details) != len(wanted):
        raise _refusal(f"it has {len(details)} {what}, and the task {len(wanted)}")
    return [details[place] for place in places]


def _check_tensor(
    what: str, detail: dict[str, Any], shapes: Sequence[tuple[int, ...]], dtype: str
) -> None:
    shape, kind = tuple(map(int, detail["shape"])), np.dtype(detail["dtype"]).name
    kinds = (dtype,) if dtype == "int32" else (dtype, "uint8", "int8")
    if kind not in kinds or shape not in [(1, *each) for each in shapes]:
        raise _refusal(f"its {what} is {kind} {list(shape)}, which the task does not ask for")
    if kind in ("uint8", "int8") and not 0 < float(detail["quantization"][0]) < np.inf:
        raise _refusal(f"its {what} has no scale")


def _encoded(values: Values, detail: dict[str, Any]) -> Values:
    """Return what a model sees in an input tensor's own numbers."""
    if detail["dtype"] in (np.float32, np.int32):
        return values
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    levels = np.rint(values / np.float32(scale)) + zero_point
    encoded: Values = np.clip(levels, limits.min, limits.max).astype(detail["dtype"])
    return encoded


def _decoded(values: Values, detail: dict[str, Any]) -> Values:
    """Return an output tensor's numbers as the float32 that they stand for."""
    if detail["dtype"] == np.float32:
        return values
    scale, zero_point = detail["quantization"]
    decoded: Values = (values.astype(np.float32) - zero_point) * np.float32(scale)
    return decoded


def _refusal(why: str) -> ClientError:
    return ClientError(f"the server's model file cannot be used: {why}; refused")
