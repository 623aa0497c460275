"""Inference with a .tflite file and numpy: needs neither TensorFlow nor Keras.

The contract of every exported kind is the same: images are uint8, and a model sees them divided
by 255. A float input gets float32 images / 255; a quantized input gets the same number in the
input's own scale and zero point, which for the usual 1/255 and 0 is the byte itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.models.errors import ModelError
from featherfed.models.images import Source, load_images
from featherfed.models.importing import importing_tensorflow
from featherfed.models.trial import try_model
from featherfed.proto.peer_text import printable

LABELS = "labels.txt"
"""The member that holds the class names, one a line; `unzip -p FILE.tflite labels.txt` shows it."""

_MAX_LABELS_BYTES = 1 << 20
_MAX_NAME = 100  # characters of a class name
_MAX_CLASSES = 1 << 20
_KINDS = {"float32", "int8", "uint8"}


class TfliteModel:
    """A model in a .tflite file, from images to probabilities.

    Raises ModelError if the file is missing or not a TFLite model with one input and one output,
    and ImportError if there is neither ai-edge-litert nor TensorFlow. A file that was made
    for it can crash the process: `Classifier` tries it in another one first.
    """

    def __init__(
        self, source: str | Path | bytes, *, batch_size: int = 250, num_threads: int = 1
    ) -> None:
        """Load a file, by its path or its content."""
        content = source if isinstance(source, bytes) else read_model(source)
        self._name = "the model" if isinstance(source, bytes) else str(source)
        try:
            self._interpreter: Any = _interpreter_class()(
                model_content=content, num_threads=num_threads
            )
            inputs = self._interpreter.get_input_details()
            outputs = self._interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            why = printable(str(error))  # it may hold names from the file
            raise ModelError(f"{self._name} is not a TFLite model: {why}") from error
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(f"{self._name} needs one input and one output to classify images")
        self._input, self._output = inputs[0], outputs[0]
        self._check_tensors()
        self._batch_size = batch_size
        self._allocated = 0

    def _check_tensors(self) -> None:
        """Raise ModelError unless images go in and probabilities come out."""
        kinds = {np.dtype(d["dtype"]).name for d in (self._input, self._output)}
        shape = self._output["shape"]
        if len(self._input["shape"]) != 4 or not len(shape) or not kinds <= _KINDS:
            raise ModelError(f"{self._name} does not turn images into probabilities")
        if not 0 < shape[-1] <= _MAX_CLASSES:
            raise ModelError(f"{self._name} tells {shape[-1]} classes apart")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return tuple(int(size) for size in self._input["shape"][1:])

    @property
    def num_classes(self) -> int:
        """How many probabilities an image gets."""
        return int(self._output["shape"][-1])

    @property
    def input_type(self) -> dict[str, Any]:
        """The input tensor's `dtype`; `scale` and `zero_point`, None unless it is an integer."""
        scale, zero_point = self._input["quantization"]
        floating = self._input["dtype"] == np.float32
        return {
            "dtype": np.dtype(self._input["dtype"]).name,
            "scale": None if floating else float(scale),
            "zero_point": None if floating else int(zero_point),
        }

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
        return np.concatenate(parts) if parts else np.empty((0, self.num_classes), np.float32)

    def time_one(self, count: int, warm_up: int = 20) -> npt.NDArray[np.float64]:
        """Return the seconds of `count` inferences of one image of noise, float64 [count]."""
        noise = np.random.default_rng(0).integers(0, 256, (1, *self.input_shape), np.uint8)
        for _ in range(warm_up):
            self._invoke(noise)
        seconds = np.empty(count)
        for number in range(count):
            start = time.perf_counter()
            self._interpreter.invoke()
            seconds[number] = time.perf_counter() - start
        return seconds

    def _invoke(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        try:
            if len(images) != self._allocated:
                self._interpreter.resize_tensor_input(self._input["index"], list(images.shape))
                self._interpreter.allocate_tensors()
                self._allocated = len(images)
            self._interpreter.set_tensor(self._input["index"], _encode(images, self._input))
            self._interpreter.invoke()
            found = _decode(self._interpreter.get_tensor(self._output["index"]), self._output)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{self._name} does not run: {printable(str(error))}") from error
        if found.shape != (len(images), self.num_classes):
            raise ModelError(f"{self._name} gives {list(found.shape)} for {len(images)} images")
        return found


def read_model(path: str | Path) -> bytes:
    """Return the content of a model file; raise ModelError if there is none."""
    if not Path(path).is_file():
        raise ModelError(f"no model file {path}; a run's output folder holds model_*.tflite")
    return Path(path).read_bytes()


class Classifier:
    """Classifies pictures, arrays and camera frames with a .tflite file.

    `class_names` come from the file itself; one without them gets "0", "1", ... Raises what
    TfliteModel does, and ModelError if the names in the file are not those of its classes, or if
    it crashes another process in which it is tried first.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 1) -> None:
        content = read_model(path)
        try_model(content, str(path))
        self._model = TfliteModel(content, num_threads=num_threads)
        count = self._model.num_classes
        self.class_names = read_labels(path) or tuple(map(str, range(count)))
        if len(self.class_names) != count:
            raise ModelError(
                f"{path} names {len(self.class_names)} classes but tells {count} apart; "
                "export it again"
            )

    def classify(self, source: Source) -> list[tuple[str, float]]:
        """Return class names with their probabilities for one image, the likeliest first.

        `source` is a picture file, .npy, .npz or an array: see `load_images`. Raises ModelError if
        it cannot be read or holds more than one image.
        """
        found = self.classify_all(source)
        if len(found) != 1:
            raise ModelError(f"{len(found)} images where one was expected; use classify_all")
        return found[0]

    def classify_all(self, source: Source) -> list[list[tuple[str, float]]]:
        """Return what `classify` does for every image of a file or an array."""
        probabilities = self._model.predict(load_images(source, self._model.input_shape))
        order = np.argsort(-probabilities, axis=1, kind="stable")
        return [
            [(self.class_names[index], float(row[index])) for index in indices]
            for row, indices in zip(probabilities, order, strict=True)
        ]


def with_labels(model: bytes, class_names: Sequence[str]) -> bytes:
    """Return a TFLite file with the class names in it, as TFLite's own metadata tools keep them.

    An archive with `labels.txt` follows the model, where the interpreter does not look: one file
    to deliver, and `unzip` and Python's zipfile read it. Equal names give equal bytes. Raises
    ValueError if a name holds a line break.
    """
    if any("\n" in name for name in class_names):
        raise ValueError(f"a class name must be one line: {list(class_names)}")
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        # A fixed date, the archive's own zero: the bytes must not depend on the clock.
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(class_names) + "\n")
    return file.getvalue()


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Return the class names in a TFLite file, fit to be printed; none if it holds none.

    Raises ModelError if what follows the model is damaged.
    """
    if not zipfile.is_zipfile(path):
        return ()
    try:
        with zipfile.ZipFile(path) as archive:
            if LABELS not in archive.namelist():
                return ()
            if archive.getinfo(LABELS).file_size > _MAX_LABELS_BYTES:
                raise ModelError(f"{path}: {LABELS} is larger than {_MAX_LABELS_BYTES} bytes")
            names = archive.read(LABELS).decode("utf-8").split("\n")[:-1]
            return tuple(printable(name, _MAX_NAME) for name in names)
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{path}: its class names are damaged ({error}); export it again"
        ) from error


def runtime() -> str:
    """Return what runs the models, for example "ai-edge-litert 2.1.0" or "tensorflow 2.21.0"."""
    name = "tensorflow" if _interpreter_class() is _tensorflow_interpreter else "ai-edge-litert"
    return f"{name} {importlib.metadata.version(name)}"


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
    levels = np.rint(values / np.float32(scale)) + zero_point
    clipped: npt.NDArray[Any] = np.clip(levels, limits.min, limits.max)
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


def _tensorflow_interpreter(model_content: bytes, num_threads: int) -> Any:
    with importing_tensorflow():
        import tensorflow as tf

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        return tf.lite.Interpreter(model_content=model_content, num_threads=num_threads)
