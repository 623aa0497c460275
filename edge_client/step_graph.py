"""Checks the graph of a training step, or of a model file, before LiteRT loads it.

LiteRT's C++ trusts much of what a file says. Here it must be one graph of arithmetic without
control flow or state: each operator reads what is there already and writes a tensor that nothing
else writes, and constants have just the size that their shape asks for. What an operator makes of
its inputs is not checked, so a step that was made for it may still crash LiteRT: see
step_process.py. The tables are those of TFLite's schema.fbs, whose fields never change their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.flatbuffer import BadOffset, Table, root

OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 5: "DEPTH_TO_SPACE", 8: "FLOOR",
    9: "FULLY_CONNECTED", 14: "LOGISTIC", 18: "MUL", 19: "RELU", 20: "RELU_N1_TO_1", 21: "RELU6",
    22: "RESHAPE", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH", 28: "TANH", 34: "PAD", 36: "GATHER",
    39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 42: "DIV", 43: "SQUEEZE", 45: "STRIDED_SLICE",
    47: "EXP", 49: "SPLIT", 50: "LOG_SOFTMAX", 53: "CAST", 54: "PRELU", 55: "MAXIMUM",
    56: "ARG_MAX", 57: "MINIMUM", 58: "LESS", 59: "NEG", 60: "PADV2", 61: "GREATER",
    62: "GREATER_EQUAL", 63: "LESS_EQUAL", 64: "SELECT", 65: "SLICE", 66: "SIN", 69: "TILE",
    70: "EXPAND_DIMS", 71: "EQUAL", 72: "NOT_EQUAL", 73: "LOG", 74: "SUM", 75: "SQRT",
    76: "RSQRT", 78: "POW", 79: "ARG_MIN", 81: "REDUCE_PROD", 82: "REDUCE_MAX", 83: "PACK",
    84: "LOGICAL_OR", 85: "ONE_HOT", 86: "LOGICAL_AND", 87: "LOGICAL_NOT", 88: "UNPACK",
    89: "REDUCE_MIN", 90: "FLOOR_DIV", 91: "REDUCE_ANY", 92: "SQUARE", 93: "ZEROS_LIKE",
    94: "FILL", 95: "FLOOR_MOD", 98: "LEAKY_RELU", 99: "SQUARED_DIFFERENCE", 100: "MIRROR_PAD",
    101: "ABS", 102: "SPLIT_V", 104: "CEIL", 105: "REVERSE_V2", 106: "ADD_N", 107: "GATHER_ND",
    108: "COS", 111: "ELU", 116: "ROUND", 117: "HARD_SWISH", 122: "SCATTER_ND", 123: "SELECT_V2",
    126: "BATCH_MATMUL", 128: "CUMSUM", 130: "BROADCAST_TO", 140: "REDUCE_ALL", 150: "GELU",
    152: "RELU_0_TO_1", 158: "SIGN",
}  # fmt: skip
"""The operators that a training step may use, by their number in the schema's BuiltinOperator."""
_ITEM_BYTES = {0: 4, 2: 4, 3: 1, 4: 8, 6: 1}
"""Bytes of an item of the schema's TensorType: FLOAT32, INT32, UINT8, INT64, BOOL."""
_MAX_AXES = 8
MODEL_OPERATORS = {
    **OPERATORS,
    3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE", 12: "L2_POOL_2D", 17: "MAX_POOL_2D",
    23: "RESIZE_BILINEAR", 37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 67: "TRANSPOSE_CONV",
    77: "SHAPE", 97: "RESIZE_NEAREST_NEIGHBOR", 114: "QUANTIZE",
}  # fmt: skip
"""The operators that a model file may use."""
_MODEL_ITEM_BYTES = {**_ITEM_BYTES, 1: 2, 7: 2, 9: 1}
"""As _ITEM_BYTES, with FLOAT16, INT16 and INT8."""
_FLOAT32 = 0


@dataclass(frozen=True)
class _Rules:
    """What a graph may hold, and what it is in errors. `may_omit`: inputs of its operators."""

    what: str
    operators: Mapping[int, str]
    item_bytes: Mapping[int, int]
    may_omit: bool = False

    def refusal(self, why: str) -> ClientError:
        """Return the error that says why a file is refused."""
        return ClientError(f"the server's {self.what} cannot be used: {why}; refused")


_STEP = _Rules("training step", OPERATORS, _ITEM_BYTES)
_MODEL = _Rules("model file", MODEL_OPERATORS, _MODEL_ITEM_BYTES, may_omit=True)


def check_graph(content: bytes, memory: int | None = None) -> None:
    """Raise ClientError unless `content` is a training step's .tflite that its inputs suffice for.

    `memory`: most bytes that one tensor may take, None for no limit.
    """
    _check(content, memory, _STEP)


def check_model_graph(content: bytes, memory: int | None = None) -> None:
    """Raise ClientError unless `content` is a .tflite of a model; `memory` as in `check_graph`."""
    _check(content, memory, _MODEL)


def float_tensors(content: bytes) -> list[int]:
    """Return the numbers of the float32 tensors that are inputs or what an operator writes."""
    (graph,) = root(content, b"TFL3").tables(2)
    made = {index for operator in graph.tables(3) for index in operator.numbers(2)}
    made.update(graph.numbers(1))
    kinds = [tensor.number(1, "b") for tensor in graph.tables(0)]
    return [index for index in sorted(made) if kinds[index] == _FLOAT32]


def _check(content: bytes, memory: int | None, rules: _Rules) -> None:
    try:
        model = root(content, b"TFL3")
        graphs = list(model.tables(2))
        if len(graphs) != 1:
            raise rules.refusal(f"it has {len(graphs)} graphs instead of one")
        constants = _Tensors(model, graphs[0], memory, rules).constants()
        _check_order(graphs[0], constants, _operators(model, rules), len(content), rules)
        for signature in model.tables(7):
            _check_signature(graphs[0], signature, rules)
    except BadOffset as error:
        raise rules.refusal(str(error)) from error


def _operators(model: Table, rules: _Rules) -> int:
    """Check the kinds of operators that the graph may use; return their number."""
    codes = list(model.tables(1))
    for code in codes:
        number = max(code.number(0, "b"), code.number(3, "i"))
        if number not in rules.operators or code.has(1):
            raise rules.refusal(f"operator {number} of TFLite is not used by {rules.what}s")
    return len(codes)


class _Tensors:
    """The tensors of a graph by themselves."""

    def __init__(self, model: Table, graph: Table, memory: int | None, rules: _Rules) -> None:
        self._rules = rules
        self._buffers = [self._buffer_bytes(buffer) for buffer in model.tables(4)]
        self._graph = graph
        self._memory = memory

    def _buffer_bytes(self, buffer: Table) -> int:
        if buffer.number(1, "Q") or buffer.number(2, "Q"):
            raise self._rules.refusal("it has constants outside of its graph")
        return buffer.length(0, 1)

    def constants(self) -> set[int]:
        """Check every tensor; return the indices of those whose values are in the file."""
        return {
            index
            for index, tensor in enumerate(self._graph.tables(0))
            if self._is_constant(index, tensor)
        }

    def _is_constant(self, index: int, tensor: Table) -> bool:
        size = self._bytes(index, tensor)
        if tensor.number(5, "b") or tensor.has(6) or tensor.number(10, "I"):
            raise self._rules.refusal(
                f"its tensor {index} is a variable, sparse, or in another file"
            )
        buffer = tensor.number(2, "I")
        if buffer >= len(self._buffers):
            raise self._rules.refusal(f"its tensor {index} has a buffer that is not there")
        given = self._buffers[buffer]
        if given and given != size:
            raise self._rules.refusal(
                f"its tensor {index} has {given} bytes, and its shape asks for {size}"
            )
        return bool(given) or not size

    def _bytes(self, index: int, tensor: Table) -> int:
        item, shape = self._rules.item_bytes.get(tensor.number(1, "b")), tensor.numbers(0)
        if item is None or len(shape) > _MAX_AXES or min(shape, default=0) < 0:
            raise self._rules.refusal(
                f"its tensor {index} has a type or shape that {self._rules.what}s do not have"
            )
        size: int = item * math.prod(shape)
        if self._memory is not None and size > self._memory:
            raise self._rules.refusal(
                f"its tensor {index} takes {size / 1e6:,.0f} MB, and this device has "
                f"{self._memory / 1e6:,.0f} MB to spare"
            )
        return size


def _check_order(graph: Table, constants: set[int], kinds: int, most: int, rules: _Rules) -> None:
    """Check that each operator reads what is there, and writes what nothing else writes.

    `most`: how many tensors all operators may name together, which could share one long list.
    """
    inputs = set(graph.numbers(1))
    if not constants.isdisjoint(inputs):
        raise rules.refusal("one of its inputs is a constant")
    tensors = graph.length(0)
    there = constants | inputs
    for number, operator in enumerate(graph.tables(3)):
        read, written = operator.numbers(1), operator.numbers(2)
        most -= len(read) + len(written)
        if operator.number(0, "I") >= kinds or most < 0:
            raise rules.refusal(f"its operator {number} is of a kind that is not there")
        if operator.length(5, 1) or operator.length(8) or operator.number(10, "Q"):
            raise rules.refusal(f"its operator {number} has options of its own kind, or a state")
        if rules.may_omit:  # a bias, the third input, as -1
            read = tuple(index for place, index in enumerate(read) if index != -1 or place < 2)
        if missing := set(read) - there:  # -1, an input left out, too: not all kernels expect it
            raise rules.refusal(f"its operator {number} reads tensor {min(missing)} too early")
        if len(set(written)) < len(written) or not there.isdisjoint(written):
            raise rules.refusal(f"its operator {number} writes a tensor that is there already")
        there.update(written)
    if there and (min(there) < 0 or max(there) >= tensors):
        raise rules.refusal(f"it uses tensor {max(there)}, and has {tensors}")
    if missing := set(graph.numbers(2)) - there:
        raise rules.refusal(f"its output, tensor {min(missing)}, is never written")


def _check_signature(graph: Table, signature: Table, rules: _Rules) -> None:
    """Check that a signature names inputs and outputs of the graph, which have memory."""
    if signature.number(4, "I"):
        raise rules.refusal("it has a signature of another graph")
    for slot, what in ((0, "input"), (1, "output")):
        named = {tensor.number(1, "I") for tensor in signature.tables(slot)}
        if named - set(graph.numbers(slot + 1)):
            raise rules.refusal(f"its signature names an {what} that its graph does not have")
