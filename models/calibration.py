"""An int8 model from ranges of values that others have measured: nobody here needs examples.

The converter's own calibration runs a float model on examples, writes the smallest and largest
value of each tensor into the file, and quantizes that. Here the values come from elsewhere. The
schema of TFLite is read by the classes that TensorFlow generates from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.lite.python import convert
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from featherfed.models.errors import ModelError
from featherfed.models.importing import without_noise
from featherfed.models.tflite import Names, tensor_places

Ranges = npt.NDArray[np.float32]
"""Smallest and largest value of each measured tensor, float32 [tensors, 2]."""


class CalibrationFile(NamedTuple):
    """A .tflite whose float values are to be measured.

    `inputs`: the place of each of the task's inputs among the file's; `outputs` likewise.
    `tensors`: the names of those that are measured, by number: every float32 tensor that is an
    input or what an operator writes.
    """

    content: bytes
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[str, ...]


def calibration_file(candidates: Sequence[bytes], names: Names) -> CalibrationFile:
    """Return the first file of a model that has all tensors of the last one, its float32 file."""
    wanted = measured_tensors(candidates[-1])
    for content in candidates:
        tensors = measured_tensors(content)
        if len(set(tensors)) == len(tensors) and set(wanted) <= set(tensors):
            return CalibrationFile(content, *tensor_places(content, names), tensors)
    raise ModelError("two tensors of the model have one name; give its layers names of their own")


def measured_tensors(content: bytes) -> tuple[str, ...]:
    """Return the names of the tensors that are measured in a .tflite, by number."""
    graph = flatbuffer_utils.convert_bytearray_to_object(bytearray(content)).subgraphs[0]
    return tuple(_text(graph.tensors[index].name) for index in _measured(graph))


def quantize(float32: bytes, ranges: Mapping[str, Sequence[float]]) -> bytes:
    """Return the int8 .tflite, uint8 in and out, of a float32 one, by the ranges of its tensors.

    Raises ModelError if one is missing, or the converter cannot do it.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(float32))
    graph = model.subgraphs[0]
    for index in _measured(graph):
        tensor = graph.tensors[index]
        if (name := _text(tensor.name)) not in ranges:
            raise ModelError(f"nobody has measured the tensor {name[:200]!r}")
        low, high = ranges[name]
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.min, tensor.quantization.max = [float(low)], [float(high)]
    content = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    with without_noise():
        try:
            made = convert.mlir_quantize(
                content, input_data_type=tf.uint8, output_data_type=tf.uint8
            )
        except Exception as error:  # the converter raises its own kinds, without a public base
            why = " ".join(str(error).split())[:300]
            raise ModelError(f"TFLite has no int8 form of this model ({why})") from None
    return bytes(made)


def _measured(graph: Any) -> list[int]:
    made = {index for operator in graph.operators for index in operator.outputs}
    return [
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.type == schema.TensorType.FLOAT32 and (index in made or index in graph.inputs)
    ]


def _text(name: bytes | str) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name
