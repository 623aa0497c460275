"""Exports a model's training step as a .tflite of builtin operators: see docs/training-step.md.

A training step is a function without state: weights, slots of the optimizer, a batch and a few
numbers in, the weights and slots after one update out.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from featherfed.exporter.calls import called
from featherfed.exporter.errors import ExportError
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.layers import is_model, run_layer
from featherfed.exporter.losses import LOSSES
from featherfed.exporter.ops import Tensor
from featherfed.exporter.optimizers import OPTIMIZERS
from featherfed.exporter.quantization import is_quantizing, run_quantized
from featherfed.models.optimized import FederatedModel
from featherfed.proto.plan_terms import DEFAULT_LOSS, Loss, Optimizer

SIGNATURE = "train"
VERSION = 4
"""Raised whenever the same model would give another training step: part of the cache's key."""


@dataclass(frozen=True)
class TrainingStepOptions:
    """The part of a plan's training that is built into the training step."""

    batch_size: int = 32
    optimizer: Optimizer = Optimizer.SGD
    loss: Loss = DEFAULT_LOSS


def tf_version() -> str:
    """Return the version of the converter: another one may give another training step."""
    return str(tf.__version__)


def export_training_step(model: FederatedModel, options: TrainingStepOptions) -> bytes:
    """Return the training step of `model` as the bytes of a .tflite.

    Raises ExportError, naming the layer and what to use instead, for what cannot be trained with
    TFLite's builtin operators.
    """
    method = model.optimization.method
    if method.needs_keras:
        raise ExportError(
            f"the method {method} trains centroids, which has no training step for LiteRT; use the "
            "method none, prune or qat, or Keras clients (--runtime keras)"
        )
    builder = _TrainingStep(model, options, masks=method.prunes)
    return _convert(builder.function(), f"model {model.trained.name!r}")


class _TrainingStep:
    """Builds the tf.function of a training step."""

    def __init__(self, model: FederatedModel, options: TrainingStepOptions, masks: bool) -> None:
        self._model = model.trained
        self._variables = model.variables
        self._manifest = model.manifest
        self._options = options
        self._optimizer = OPTIMIZERS[options.optimizer]
        self._trainable = {id(v) for v in self._model.trainable_variables}
        self._masked = [masks and spec.prunable for spec in self._manifest]
        self._noises = self._noise_shapes()

    def _noise_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the noise inputs, in the order of the model's dropout layers."""
        shapes: list[tuple[int, ...]] = []

        def record(shape: tuple[int, ...]) -> Tensor:
            shapes.append(shape)
            return tf.zeros(shape)

        with tf.Graph().as_default():
            batch = self._options.batch_size
            values = {id(v): tf.zeros(v.shape or (1,)) for v in self._variables}
            images = tf.zeros([batch, *self._model.input_shape[1:]], tf.uint8)
            _run(self._model, images, ForwardPass(values, tf.ones([batch]), record))
        return shapes

    def inputs(self) -> dict[str, tf.TensorSpec]:
        """Return the signature's inputs."""
        batch = self._options.batch_size
        specs = {
            "images": tf.TensorSpec([batch, *self._model.input_shape[1:]], tf.uint8),
            "labels": tf.TensorSpec([batch], tf.int32),
            "importance": tf.TensorSpec([batch], tf.float32),
            "learning_rate": tf.TensorSpec([1], tf.float32),
            "step": tf.TensorSpec([1], tf.float32),
        }
        for k, spec in enumerate(self._manifest):
            # Scalars get an axis: one without crashes LiteRT's signature runner on aarch64.
            shape = spec.shape or (1,)
            specs[f"weight_{k}"] = tf.TensorSpec(shape, tf.float32)
            if self._masked[k]:
                specs[f"mask_{k}"] = tf.TensorSpec(shape, tf.float32)
            if id(self._variables[k]) in self._trainable:
                for s in range(self._optimizer.slots):
                    specs[f"slot_{k}_{s}"] = tf.TensorSpec(shape, tf.float32)
        for n, shape in enumerate(self._noises):
            specs[f"noise_{n}"] = tf.TensorSpec(shape, tf.float32)
        return {name: tf.TensorSpec(s.shape, s.dtype, name=name) for name, s in specs.items()}

    def function(self) -> Any:
        """Return the training step as a tf.function of named inputs."""

        @tf.function(input_signature=list(self.inputs().values()), autograph=False)  # type: ignore[untyped-decorator]
        def train(*tensors: Tensor) -> dict[str, Tensor]:
            return self._update(dict(zip(self.inputs(), tensors, strict=True)))

        return train

    def _update(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = [given[f"weight_{k}"] for k in range(len(self._manifest))]
        trainable = [k for k, v in enumerate(self._variables) if id(v) in self._trainable]
        noises = iter([given[f"noise_{n}"] for n in range(len(self._noises))])
        importance = given["importance"]
        with tf.GradientTape() as tape:
            for k in trainable:
                tape.watch(weights[k])
            forward = ForwardPass(
                {id(v): w for v, w in zip(self._variables, weights, strict=True)},
                importance,
                noise=lambda shape: next(noises),
            )
            outputs = _run(self._model, given["images"], forward)
            hot = tf.one_hot(given["labels"], outputs.shape[1])
            losses = LOSSES[self._options.loss](outputs, hot, forward)
            count = tf.reduce_sum(importance, keepdims=True)
            mean = tf.reduce_sum(losses * importance, keepdims=True) / count
            for penalty in forward.penalties.values():
                mean = mean + penalty
        gradients = tape.gradient(mean, [weights[k] for k in trainable])
        right = tf.cast(
            tf.equal(tf.argmax(outputs, axis=1, output_type=tf.int32), given["labels"]), tf.float32
        )
        results = {
            "loss": mean,
            "correct": tf.reduce_sum(right * importance, keepdims=True),
        }
        for k, w in enumerate(weights):
            results[f"new_weight_{k}"] = forward.updates.get(id(self._variables[k]), w)
        for k, gradient in zip(trainable, gradients, strict=True):
            if gradient is None:
                gradient = tf.zeros_like(weights[k])
            slots = [given[f"slot_{k}_{s}"] for s in range(self._optimizer.slots)]
            new, slots = self._optimizer.apply(
                weights[k], gradient, slots, given["learning_rate"], given["step"]
            )
            results[f"new_weight_{k}"] = new * given[f"mask_{k}"] if self._masked[k] else new
            for s, slot in enumerate(slots):
                results[f"new_slot_{k}_{s}"] = slot
        return results


def _run(model: Any, images: Tensor, forward: ForwardPass) -> Tensor:
    # The very floats that Keras sees: a last bit here is a last bit everywhere.
    return _run_model(model, [tf.cast(images, tf.float32) / (255.0 * forward.one)], forward)


def _run_model(model: Any, inputs: Sequence[Tensor], forward: ForwardPass) -> Tensor:
    """Follow a Keras model's graph, nested models included."""
    made = {id(keras): tensor for keras, tensor in zip(model.inputs, inputs, strict=True)}
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if node.is_input:
                continue
            taken = [made[id(keras)] for keras in tf.nest.flatten(node.keras_inputs)]
            (output,) = tf.nest.flatten(node.outputs)
            made[id(output)] = _run_node(node, taken, forward)
    (output,) = model.outputs
    return made[id(output)]


def _run_node(node: Any, inputs: list[Tensor], forward: ForwardPass) -> Tensor:
    layer = node.layer
    with called(node, inputs, forward):
        if is_model(layer):
            return _run_model(layer, inputs, forward)
        if is_quantizing(layer):
            return run_quantized(layer, inputs, forward)
        return run_layer(layer, inputs, forward)


def _convert(function: Any, what: str) -> bytes:
    module = tf.Module()
    module.train = function
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(scratch) / "step")
        tf.saved_model.save(module, path, signatures={SIGNATURE: function})
        converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert())
        except Exception as error:  # the converter raises its own kinds, without a public base
            raise ExportError(
                f"{what}: TFLite has no operators for its training step ({str(error)[:200]}); use "
                "Keras clients (--runtime keras)"
            ) from error
