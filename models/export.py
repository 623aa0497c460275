"""The finished model as files: TFLite in four kinds, and one for Keras.

float32, float16 (weights), dynamic (int8 weights) and int8 (all integers, uint8 in and out: a
camera's bytes go straight in). Every kind takes prepared inputs; `featherfed.models.tflite` says
how, and its `Predictor` finds the task and its scaling in the file.

A quantization-aware model is what int8 is made from; the other kinds get its weights in the plain
model. The converter would make float32 with fake quantization, six times slower, and the other two
as one and the same integer model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from featherfed.compression.files import put_in_place, scratch_of, write_whole
from featherfed.models.importing import without_noise
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import FileTask, with_task
from featherfed.models.training import Inputs
from featherfed.models.wrapping import quantize_scope
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Task

KINDS = ("float32", "float16", "dynamic", "int8")
"""The TFLite kinds; each is written as model_<kind>.tflite."""

_SAMPLES = 200


def export(
    model: FederatedModel,
    directory: str | Path,
    representative: Inputs,
    scaling: Scaling | None = None,
) -> list[Path]:
    """Write model_<kind>.tflite for every kind and a Keras file; return their paths.

    The Keras file is model.keras, or model.h5 for the quantizing methods; `load_keras` reads both.
    `representative` are prepared inputs [N, ...], N at least 1, from which int8 takes its ranges
    (a quantization-aware model has its own, but the converter asks all the same); at most 200 of
    them are used. The task and `scaling` go into every TFLite file. Raises ValueError if there are
    no examples, or class names that are not one line each.
    """
    return list(export_each(model, directory, representative, scaling))


def export_each(
    model: FederatedModel,
    directory: str | Path,
    representative: Inputs,
    scaling: Scaling | None = None,
) -> Iterator[Path]:
    """Do what `export` does, and yield each path as soon as the file is there."""
    if not len(representative[0]):
        raise ValueError("the int8 kind needs some representative examples")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    plain, finished = model.plain(), model.finished()
    for kind in KINDS:
        keras = finished if kind == "int8" else plain
        path = folder / f"model_{kind}.tflite"
        write_whole(path, _tflite(keras, model.task, kind, representative, scaling))
        yield path
    yield _save(finished, folder, model.optimization.method.quantizes)


def tflite_bytes(
    model: FederatedModel, kind: str, representative: Inputs, scaling: Scaling | None = None
) -> bytes:
    """Return what `export` writes as model_<kind>.tflite; its arguments are explained there."""
    keras = model.finished() if kind == "int8" else model.plain()
    return _tflite(keras, model.task, kind, representative, scaling)


def _tflite(
    keras: Any, task: Task, kind: str, representative: Inputs, scaling: Scaling | None
) -> bytes:
    names = tuple(keras.input_names) if len(task.inputs) > 1 else ()
    described = FileTask(task, scaling or Scaling.none(task), names)
    return with_task(_convert(keras, kind, task, representative), described)


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
        return bytes(converter.convert())


def _samples(keras: Any, task: Task, inputs: Inputs) -> Callable[[], Iterator[Any]]:
    count = len(inputs[0])
    chosen = np.linspace(0, count - 1, min(_SAMPLES, count)).astype(int)

    def generate() -> Iterator[Any]:
        for number in chosen:
            example = [values[number : number + 1] for values in inputs]
            seen = [given.seen(x) for given, x in zip(task.inputs, example, strict=True)]
            yield seen if len(seen) == 1 else dict(zip(keras.input_names, seen, strict=True))

    return generate
