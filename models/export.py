"""The finished model as files: TFLite in four kinds, and one for Keras.

float32, float16 (weights), dynamic (int8 weights) and int8 (all integers, uint8 in and out: a
camera's bytes go straight in). Every kind takes prepared inputs; `featherfed.models.tflite` says
how, and its `Predictor` finds the task and its scaling in the file.

A quantization-aware model is what int8 is made from; the other kinds get its weights in the plain
model. The converter would make float32 with fake quantization, six times slower, and the other two
as one and the same integer model.

Recurrent layers are unrolled first (`unrolling.py`), since TFLite's builtin operators have no loop
for them. The Keras file keeps them as they were.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from featherfed.compression.files import put_in_place, scratch_of, write_whole
from featherfed.models.calibration import CalibrationFile, Ranges, calibration_file, quantize
from featherfed.models.errors import ModelError
from featherfed.models.importing import without_noise
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import FileTask, Names, noise, with_task
from featherfed.models.training import Inputs
from featherfed.models.unrolling import unrolled
from featherfed.models.wrapping import quantize_scope
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Task

KINDS = ("float32", "float16", "dynamic", "int8")
"""The TFLite kinds; each is written as model_<kind>.tflite."""
VERSION = 1
"""Raised whenever the same model would be converted in another way: part of the key of what is
remembered of a model."""
NO_RANGES = (
    "nobody knows the ranges of its values: the server has no examples, and no client has told "
    "which it measured. Let clients hold examples out ([evaluation] holdout, and int8 = true) and "
    "stay until the run's end, give [evaluation] dataset, or train with [optimization] method = "
    '"qat", which learns ranges'
)
"""Why there is no int8 file, and what to do."""

_SAMPLES = 200
_REASON = 300
"""Most characters of the converter's reason in an error."""


class ModelFiles:
    """Writes the files of a model with its present weights, each whole or not at all.

    `representative` are prepared inputs [N, ...] from which int8 takes its ranges; at most 200 of
    them are used. None: there are none, so `ranges` take their place, which others have measured of
    the tensors of `calibration`. With neither, only a quantization-aware model, which has ranges of
    its own, gives an int8 file. The task and `scaling` go into every TFLite file.
    """

    def __init__(
        self,
        model: FederatedModel,
        folder: str | Path,
        representative: Inputs | None,
        scaling: Scaling | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        if representative is not None and not len(representative[0]):
            raise ValueError("the int8 kind needs some representative examples")
        self._folder = Path(folder)
        self._quantizes = model.optimization.method.quantizes
        self._model, self._finished = model, model.finished()
        self._task = model.task
        self._representative = representative
        self._ranges = ranges
        self._scaling = scaling or Scaling.none(model.task)
        self._made: dict[str, bytes] = {}

    def write_keras(self) -> Path:
        """Write model.keras, or model.h5 for the quantizing methods; `load_keras` reads both."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return _save(self._finished, self._folder, self._quantizes)

    def write_tflite(self, kind: str) -> Path:
        """Write model_<kind>.tflite; raise ModelError if TFLite cannot express the model.

        Raises ValueError for class names that are not one line each.
        """
        path = self._folder / tflite_name(kind)
        content = self.tflite(kind)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        return path

    def tflite(self, kind: str) -> bytes:
        """Return what `write_tflite` writes."""
        if kind != "int8":
            return self._described(self._plain, self._float(kind))
        if self._representative is None and not self._quantizes:
            return self._described(self._plain, self._by_ranges())
        keras = self._finished if self._quantizes else self._plain
        # The converter asks a quantization-aware model for some, and takes nothing from them.
        examples = noise(self._task, 1) if self._representative is None else self._representative
        return self._described(keras, _convert(keras, kind, self._task, examples))

    def names(self, kind: str) -> Names:
        """Return the names of a kind's input and output tensors."""
        return self._names(self._finished if kind == "int8" and self._quantizes else self._plain)

    def calibration(self) -> CalibrationFile:
        """Return the file whose values are to be measured for `ranges`; raise ModelError.

        The dynamic kind, a quarter of float32, where it has all tensors that int8 needs.
        """
        return self._calibration

    @cached_property
    def _calibration(self) -> CalibrationFile:
        candidates = [self._float("dynamic"), self._float("float32")]
        return calibration_file(candidates, self._names(self._plain))

    def _by_ranges(self) -> bytes:
        if self._ranges is None:
            raise ModelError(NO_RANGES)
        tensors = self.calibration().tensors
        if self._ranges.shape != (len(tensors), 2):
            raise ModelError(
                f"there are ranges of {len(self._ranges)} tensors, and the model has "
                f"{len(tensors)}: they were measured on another one"
            )
        return quantize(self._float("float32"), dict(zip(tensors, self._ranges, strict=True)))

    def _float(self, kind: str) -> bytes:
        """Return a kind without ranges, made once."""
        if kind not in self._made:
            self._made[kind] = _convert(self._plain, kind, self._task, ())
        return self._made[kind]

    def _described(self, keras: Any, content: bytes) -> bytes:
        return with_task(content, FileTask(self._task, self._scaling, *self._names(keras)))

    def _names(self, keras: Any) -> Names:
        inputs = tuple(keras.input_names) if len(self._task.inputs) > 1 else ()
        return Names(inputs, tuple(keras.output_names) if self._task.target.parts else ())

    @cached_property
    def _plain(self) -> Any:
        return unrolled(self._model.plain())


def tflite_name(kind: str) -> str:
    """Return the name of the file of a TFLite kind."""
    return f"model_{kind}.tflite"


def export(
    model: FederatedModel,
    folder: str | Path,
    representative: Inputs | None,
    scaling: Scaling | None = None,
) -> list[Path]:
    """Write all files of a model (see ModelFiles); return their paths, TFLite kinds first."""
    files = ModelFiles(model, folder, representative, scaling)
    return [*map(files.write_tflite, KINDS), files.write_keras()]


def _save(finished: Any, folder: Path, quantizes: bool) -> Path:
    # TFMOT's quantize layers save in the .keras format but do not load from it.
    path = folder / ("model.h5" if quantizes else "model.keras")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*saving your model as an HDF5", UserWarning)
        # The .keras format takes no such argument; that model was never compiled.
        finished.save(scratch_of(path), **({"include_optimizer": False} if quantizes else {}))
    put_in_place(scratch_of(path), path)
    return path


def load_keras(path: str | Path) -> Any:
    """Load a model.keras or model.h5 that `export` wrote; only from someone you trust."""
    with quantize_scope():
        return tf_keras.models.load_model(path, compile=False)


def _convert(keras: Any, kind: str, task: Task, representative: Inputs) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(keras)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = _samples(keras, task, representative)
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    with without_noise(), warnings.catch_warnings():
        # The representative examples are those statistics; the check runs before they are used.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        # The converter's own, for examples of several inputs.
        warnings.filterwarnings("ignore", r"(?s).*tf\.lite\.Interpreter is deprecated")
        try:
            return bytes(converter.convert())
        except Exception as error:  # the converter raises its own kinds, without a public base
            raise ModelError(
                f"TFLite has no {kind} form of this model ({_reason(error)}); use the Keras file, "
                "or other layers"
            ) from None  # what the converter says else fills pages


def _reason(error: Exception) -> str:
    """Return the first cause that the converter names, in one line."""
    text = str(error)
    named = re.search(r"error: (.+)", text)
    return " ".join((named[1] if named else text or type(error).__name__).split())[:_REASON]


def _samples(keras: Any, task: Task, inputs: Inputs) -> Callable[[], Iterator[Any]]:
    count = len(inputs[0])
    chosen = np.linspace(0, count - 1, min(_SAMPLES, count)).astype(int)

    def generate() -> Iterator[Any]:
        for number in chosen:
            example = [values[number : number + 1] for values in inputs]
            seen = [given.seen(x) for given, x in zip(task.inputs, example, strict=True)]
            yield seen if len(seen) == 1 else dict(zip(keras.input_names, seen, strict=True))

    return generate
