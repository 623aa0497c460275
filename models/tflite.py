"""Inference with a .tflite file and numpy: needs neither TensorFlow nor Keras.

The contract of every exported kind is the same: images are uint8, and a model sees them divided
by 255. A float input gets float32 images / 255; a quantized input gets the same number in the
input's own scale and zero point, which for the usual 1/255 and 0 is the byte itself.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.models.errors import ModelError


class TfliteModel:
    """A classifier in a .tflite file.

    Raises ModelError if the file is not a TFLite model with one input and one output, and
    ImportError if there is neither ai-edge-litert nor TensorFlow.
    """

    def __init__(self, path: str | Path, *, batch_size: int = 250, num_threads: int = 1) -> None:
        try:
            self._interpreter: Any = _interpreter_class()(str(path), num_threads=num_threads)
        except ValueError as error:
            raise ModelError(f"{path} is not a TFLite model: {error}") from error
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(f"{path} needs one input and one output to classify images")
        self._input, self._output = inputs[0], outputs[0]
        self._batch_size = batch_size
        self._allocated = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return tuple(int(size) for size in self._input["shape"][1:])

    def predict(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return float32 [N, classes] probabilities of uint8 images [N, H, W, C].

        Raises ModelError if the images are not uint8 or not of the model's shape.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.input_shape:
            raise ModelError(
                f"expected uint8 images [N, {', '.join(map(str, self.input_shape))}], "
                f"got {images.dtype} {list(images.shape)}"
            )
        starts = range(0, len(images), self._batch_size)
        parts = [self._invoke(images[start : start + self._batch_size]) for start in starts]
        classes = int(self._output["shape"][-1])
        return np.concatenate(parts) if parts else np.empty((0, classes), np.float32)

    def _invoke(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if len(images) != self._allocated:
            self._interpreter.resize_tensor_input(self._input["index"], list(images.shape))
            self._interpreter.allocate_tensors()
            self._allocated = len(images)
        self._interpreter.set_tensor(self._input["index"], _encode(images, self._input))
        self._interpreter.invoke()
        return _decode(self._interpreter.get_tensor(self._output["index"]), self._output)


def evaluate_tflite(
    path: str | Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]]
) -> float:
    """Return the accuracy on uint8 images [N, H, W, C] and integer labels [N]."""
    predicted = TfliteModel(path).predict(images).argmax(axis=1)
    return float(np.mean(predicted == labels))


def _encode(images: npt.NDArray[np.uint8], detail: dict[str, Any]) -> npt.NDArray[Any]:
    values = images.astype(np.float32) / np.float32(255)
    if detail["dtype"] == np.float32:
        return values
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    steps = np.rint(values / np.float32(scale)) + zero_point
    clipped: npt.NDArray[Any] = np.clip(steps, limits.min, limits.max)
    return clipped.astype(detail["dtype"])


def _decode(values: npt.NDArray[Any], detail: dict[str, Any]) -> npt.NDArray[np.float32]:
    if detail["dtype"] == np.float32:
        return np.array(values, np.float32)
    scale, zero_point = detail["quantization"]
    centred = values.astype(np.float32) - np.float32(zero_point)
    probabilities: npt.NDArray[np.float32] = centred * np.float32(scale)
    return probabilities


def _interpreter_class() -> Any:
    # The Interpreter of both, never LiteRT's CompiledModel: that one aborts on a Raspberry Pi 4.
    try:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError:
        return _tensorflow_interpreter


def _tensorflow_interpreter(path: str, num_threads: int) -> Any:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        return tf.lite.Interpreter(path, num_threads=num_threads)
