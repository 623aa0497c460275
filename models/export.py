"""The finished model as files: TFLite in four kinds, and one for Keras.

float32, float16 (weights), dynamic (int8 weights) and int8 (all integers, uint8 in and out: a
camera's bytes go straight in). Every kind sees images / 255; `featherfed.models.tflite` says how,
and its `Classifier` finds the class names in the file.

A quantization-aware model is what int8 is made from; the other kinds get its weights in the plain
model. The converter would make float32 with fake quantization, six times slower, and the other two
as one and the same integer model.

Recurrent layers are unrolled first (`unrolling.py`), since TFLite's builtin operators have no loop
for them. The Keras file keeps them as they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from featherfed.compression.files import put_in_place, scratch_of, write_whole
from featherfed.models.importing import without_noise
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import with_labels
from featherfed.models.training import Images, to_float
from featherfed.models.unrolling import unrolled
from featherfed.models.wrapping import quantize_scope

KINDS = ("float32", "float16", "dynamic", "int8")
"""The TFLite kinds; each is written as model_<kind>.tflite."""

_SAMPLES = 200


def export(
    model: FederatedModel,
    directory: str | Path,
    representative: Images,
    class_names: Sequence[str] = (),
) -> list[Path]:
    """Write model_<kind>.tflite for every kind and a Keras file; return their paths.

    The Keras file is model.keras, or model.h5 for the quantizing methods; `load_keras` reads both.
    `representative` are uint8 images [N, H, W, C], N at least 1, from which int8 takes its ranges
    (a quantization-aware model has its own, but the converter asks all the same); at most 200 of
    them are used. `class_names`, if any, go into every TFLite file. Raises ValueError if there are
    no images, or names that are not one line each.
    """
    return list(export_each(model, directory, representative, class_names))


def export_each(
    model: FederatedModel,
    directory: str | Path,
    representative: Images,
    class_names: Sequence[str] = (),
) -> Iterator[Path]:
    """Do what `export` does, and yield each path as soon as the file is there."""
    if not len(representative):
        raise ValueError("the int8 kind needs some representative images")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    plain, finished = unrolled(model.plain()), model.finished()
    integer = finished if model.optimization.method.quantizes else plain
    for kind in KINDS:
        keras = integer if kind == "int8" else plain
        path = folder / f"model_{kind}.tflite"
        write_whole(path, _labelled(_convert(keras, kind, representative), class_names))
        yield path
    yield _save(finished, folder, model.optimization.method.quantizes)


def export_kind(
    model: FederatedModel, kind: str, representative: Images, class_names: Sequence[str] = ()
) -> bytes:
    """Return what `export` writes as model_<kind>.tflite; its arguments are explained there."""
    quantized = kind == "int8" and model.optimization.method.quantizes
    keras = model.finished() if quantized else unrolled(model.plain())
    return _labelled(_convert(keras, kind, representative), class_names)


def _labelled(data: bytes, class_names: Sequence[str]) -> bytes:
    return with_labels(data, class_names) if class_names else data


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


def _convert(keras: Any, kind: str, representative: Images) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(keras)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = _samples(representative)
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    with without_noise(), warnings.catch_warnings():
        # The representative images are those statistics; the check runs before they are used.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        return bytes(converter.convert())


def _samples(images: Images) -> Callable[[], Iterator[list[Any]]]:
    chosen = images[np.linspace(0, len(images) - 1, min(_SAMPLES, len(images))).astype(int)]

    def generate() -> Iterator[list[Any]]:
        for image in chosen:
            yield [to_float(image[None])]

    return generate
