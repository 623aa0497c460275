"""Checks the graph of a .tflite from a stranger before an interpreter loads it.

LiteRT's C++ trusts much of what a file says. Here a file must be one graph without control flow:
operators in an order in which each reads what is there already and writes a tensor that nothing
else writes, constants of just the size that their shape asks for. What operators then make of
their inputs is not checked, so a file of a stranger may still crash the interpreter.
"""

from __future__ import annotations

import importlib
import math
import struct
from typing import Any

from featherfed.models.errors import ModelError

_ARITHMETIC = """
    ABS ADD ADD_N ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CAST CEIL
    CONCATENATION COS CUMSUM DEPTH_TO_SPACE DIV ELU EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV
    FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS
    LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU REDUCE_ALL REDUCE_ANY REDUCE_MAX
    REDUCE_MIN REDUCE_PROD RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE REVERSE_V2 ROUND RSQRT SELECT
    SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE
    SQUEEZE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE UNPACK ZEROS_LIKE"""
STEP_OPERATORS = frozenset(_ARITHMETIC.split())
"""The operators of training steps: arithmetic on tensors, without state or control flow."""
_LAYERS = """
    CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE EMBEDDING_LOOKUP L2_NORMALIZATION L2_POOL_2D
    MAX_POOL_2D QUANTIZE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SHAPE TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN"""
MODEL_OPERATORS = STEP_OPERATORS | frozenset(_LAYERS.split())
"""The operators of models for inference."""

_ITEM_BYTES = {
    "BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "FLOAT16": 2, "INT32": 4, "FLOAT32": 4, "INT64": 8
}  # fmt: skip
_MAX_AXES = 8
_OPTIONAL = -1


def check_graph(content: bytes, operators: frozenset[str], memory: int | None = None) -> None:
    """Raise ModelError unless `content` is a graph of `operators` that can be run from its inputs.

    `memory`: most bytes that one tensor may take, None for no limit.
    """
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    try:
        if not schema.Model.ModelBufferHasIdentifier(content, 0):
            raise ModelError("it is no .tflite")
        _Graph(schema, content).check(operators, memory)
    except (struct.error, ValueError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"its structure is damaged ({error})") from error


class _Graph:
    """The only graph of a .tflite."""

    def __init__(self, schema: Any, content: bytes) -> None:
        self._content = content
        self._model = schema.Model.GetRootAs(content, 0)
        if self._model.SubgraphsLength() != 1:
            raise ModelError(f"it has {self._model.SubgraphsLength()} graphs instead of one")
        self._graph = self._model.Subgraphs(0)
        self._types = _names(schema.TensorType)
        self._operators = _names(schema.BuiltinOperator)
        self._count = self._limited(self._graph.TensorsLength())
        self._read = 0

    def check(self, operators: frozenset[str], memory: int | None) -> None:
        """Raise ModelError for whatever is wrong with the graph."""
        codes = self._check_codes(operators)
        constants = self._check_tensors(memory)
        self._check_signatures()
        self._check_order(constants, codes)

    def _check_codes(self, allowed: frozenset[str]) -> int:
        """Check the operators that the graph may use; return their number."""
        count = self._limited(self._model.OperatorCodesLength())
        for number in range(count):
            code = self._model.OperatorCodes(number)
            value = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            name = self._operators.get(value, f"number {value}")
            if name not in allowed or code.CustomCode() is not None:
                raise ModelError(f"it uses the operator {name}, which is not allowed here")
        return count

    def _check_tensors(self, memory: int | None) -> set[int]:
        """Check the tensors by themselves; return the indices of constants."""
        sizes = self._buffer_sizes()
        constants = set()
        for index in range(self._count):
            tensor = self._graph.Tensors(index)
            size = self._tensor_bytes(index, tensor)
            if memory is not None and size > memory:
                raise ModelError(
                    f"its tensor {index} takes {size:,} bytes, and this device has {memory:,} free"
                )
            if tensor.IsVariable() or tensor.Sparsity() is not None or tensor.ExternalBuffer():
                raise ModelError(f"its tensor {index} is a variable, sparse or in another file")
            if tensor.Buffer() >= len(sizes):
                raise ModelError(f"its tensor {index} has the buffer {tensor.Buffer()}, of none")
            given = sizes[tensor.Buffer()]
            if given and given != size:
                raise ModelError(
                    f"its tensor {index} has {given} bytes where its shape asks {size}"
                )
            if given or not size:
                constants.add(index)
        return constants

    def _buffer_sizes(self) -> list[int]:
        sizes = []
        for number in range(self._limited(self._model.BuffersLength())):
            buffer = self._model.Buffers(number)
            if buffer.Offset() or buffer.Size():
                raise ModelError(f"its buffer {number} lies outside of the graph")
            sizes.append(self._limited(buffer.DataLength(), 1))
        return sizes

    def _tensor_bytes(self, index: int, tensor: Any) -> int:
        name = self._types.get(tensor.Type(), f"number {tensor.Type()}")
        if name not in _ITEM_BYTES:
            raise ModelError(f"its tensor {index} is of the type {name}")
        axes = tensor.ShapeLength()
        shape = [tensor.Shape(axis) for axis in range(min(axes, _MAX_AXES))]
        if axes > _MAX_AXES or min(shape, default=0) < 0:
            raise ModelError(f"its tensor {index} has the shape {shape} of {axes} axes")
        size: int = math.prod(shape) * _ITEM_BYTES[name]
        return size

    def _check_signatures(self) -> None:
        for number in range(self._limited(self._model.SignatureDefsLength())):
            signature = self._model.SignatureDefs(number)
            if signature.SubgraphIndex():
                raise ModelError(f"its signature {number} is of another graph")
            inputs = [signature.Inputs(k) for k in range(self._limited(signature.InputsLength()))]
            outputs = [
                signature.Outputs(k) for k in range(self._limited(signature.OutputsLength()))
            ]
            # A name for each input and output, and none of other tensors, which may have no memory.
            taken = {int(k) for k in self._vector(self._graph.InputsAsNumpy())}
            made = {int(k) for k in self._vector(self._graph.OutputsAsNumpy())}
            if {tensor.TensorIndex() for tensor in inputs} - taken:
                raise ModelError(f"its signature {number} takes what is no input of its graph")
            if {tensor.TensorIndex() for tensor in outputs} - made:
                raise ModelError(f"its signature {number} gives what is no output of its graph")

    def _check_order(self, constants: set[int], codes: int) -> None:
        """Check that each operator reads what is there, and writes what nothing else writes."""
        inputs = self._vector(self._graph.InputsAsNumpy())
        if len(set(inputs)) < len(inputs) or not constants.isdisjoint(inputs):
            raise ModelError("an input of it is a constant, or another input")
        there = constants | set(inputs)
        for number in range(self._limited(self._graph.OperatorsLength())):
            operator = self._graph.Operators(number)
            if operator.OpcodeIndex() >= codes:
                raise ModelError(f"its operator {number} is none")
            if operator.IntermediatesLength() or operator.MutatingVariableInputsLength():
                raise ModelError(f"its operator {number} has a state")
            if operator.CustomOptionsLength() or operator.LargeCustomOptionsSize():
                raise ModelError(f"its operator {number} has options of its own kind")
            read = set(self._vector(operator.InputsAsNumpy())) - {_OPTIONAL}
            written = self._vector(operator.OutputsAsNumpy())
            if missing := read - there:
                raise ModelError(f"its operator {number} reads tensor {min(missing)} too early")
            if len(set(written)) < len(written) or not there.isdisjoint(written):
                raise ModelError(f"its operator {number} writes a tensor that is there already")
            there |= set(written)
        if missing := set(self._vector(self._graph.OutputsAsNumpy())) - there:
            raise ModelError(f"its output, tensor {min(missing)}, is never written")

    def _vector(self, values: Any) -> list[int]:
        """Return a vector of tensor indices, each of which is one or -1."""
        indices: list[int] = (
            [] if isinstance(values, int) else values.tolist()
        )  # 0 where there is none
        # Together, as many operators could share one long list.
        self._read = self._limited(self._read + len(indices), 1)
        if indices and (min(indices) < _OPTIONAL or max(indices) >= self._count):
            raise ModelError(f"it uses the tensor {max(indices)} of {self._count}")
        return indices

    def _limited(self, count: int, item_bytes: int = 4) -> int:
        """Return the length of a vector; raise ModelError if the file is too short for it."""
        if count * item_bytes > len(self._content):
            raise ModelError(f"it announces {count} items in {len(self._content)} bytes")
        return count


def _names(enum: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}
