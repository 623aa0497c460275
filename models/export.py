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
from featherfed.models.errors import ModelError
from featherfed.models.importing import without_noise
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import FileTask, noise, with_task
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
    "nobody knows the ranges of its values, since the server has no examples; give [evaluation] "
    'dataset, or train with [optimization] method = "qat", which learns them'
)
"""Why there is no int8 file, and what to do."""

_SAMPLES = 200
_REASON = 300
"""Most characters of the converter's reason in an error."""


class ModelFiles:
    """Writes the files of a model with its present weights, each whole or not at all.

    `representative` are prepared inputs [N, ...] from which int8 takes its ranges; at most 200 of
    them are used. None: there are none, so only a quantization-aware model, which has ranges of its
    own, gives an int8 file. The task and `scaling` go into every TFLite file.
    """

    def __init__(
        self,
        model: FederatedModel,
        folder: str | Path,
        representative: Inputs | None,
        scaling: Scaling | None = None,
    ) -> None:
        if representative is not None and not len(representative[0]):
            raise ValueError("the int8 kind needs some representative examples")
        self._folder = Path(folder)
        self._quantizes = model.optimization.method.quantizes
        self._model, self._finished = model, model.finished()
        self._task = model.task
        self._representative = representative
        self._scaling = scaling or Scaling.none(model.task)

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
        examples: Inputs = ()
        if kind == "int8":
            examples = self._ranges_from()
        keras = self._finished if kind == "int8" and self._quantizes else self._plain
        names = tuple(keras.input_names) if len(self._task.inputs) > 1 else ()
        outputs = tuple(keras.output_names) if self._task.target.parts else ()
        described = FileTask(self._task, self._scaling, names, outputs)
        return with_task(_convert(keras, kind, self._task, examples), described)

    @cached_property
    def _plain(self) -> Any:
        return unrolled(self._model.plain())

    def _ranges_from(self) -> Inputs:
        """Return the examples that int8 is made with; raise ModelError if there are none."""
        if self._representative is not None:
            return self._representative
        if not self._quantizes:
            raise ModelError(NO_RANGES)
        return noise(self._task, 1)  # the converter asks for some, and takes nothing from them


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
