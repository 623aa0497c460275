"""Exports a model's training step as .tflite files of builtin operators: docs/training-step.md.

A training step is a function without state: weights, slots of the optimizer, a batch and a few
numbers in, the weights and slots after one update out. Beside it goes a function that answers: a
batch and weights in, the model's outputs out.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from featherfed.exporter.calls import called
from featherfed.exporter.errors import ExportError
from featherfed.exporter.forward import ForwardPass
from featherfed.exporter.layers import is_model, run_layer
from featherfed.exporter.losses import example_losses
from featherfed.exporter.ops import Tensor
from featherfed.exporter.optimizers import OPTIMIZERS
from featherfed.exporter.quantization import is_quantizing, run_quantized
from featherfed.models.importing import without_noise
from featherfed.models.optimized import FederatedModel
from featherfed.proto.plan_terms import Optimizer
from featherfed.proto.step_file import join_step
from featherfed.tasks.task import Target, TargetKind

TRAIN, ANSWER = "train", "answer"
VERSION = 5
"""Raised whenever the same model would give another training step: part of the cache's key."""


@dataclass(frozen=True)
class TrainingStepOptions:
    """The part of a plan's training that is built into the training step."""

    batch_size: int = 32
    optimizer: Optimizer = Optimizer.SGD


def tf_version() -> str:
    """Return the version of the converter: another one may give another training step."""
    return str(tf.__version__)


def export_training_step(model: FederatedModel, options: TrainingStepOptions) -> bytes:
    """Return the training step of `model` as a file of two .tflites (proto/step_file.py).

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
    what = f"model {model.trained.name!r}"
    train = _convert(builder.training(), TRAIN, what)
    return join_step(train, _convert(builder.answering(), ANSWER, what))


class _TrainingStep:
    """Builds the two tf.functions of a training step."""

    def __init__(self, model: FederatedModel, options: TrainingStepOptions, masks: bool) -> None:
        self._model = model.trained
        self._task = model.task
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
            given = {name: tf.zeros(s.shape, s.dtype) for name, s in self._examples().items()}
            self._run(given, ForwardPass(values, tf.ones([batch]), record))
        return shapes

    def _examples(self) -> dict[str, tf.TensorSpec]:
        """Return the inputs that are a batch of examples, without their target."""
        batch = self._options.batch_size
        return {
            f"input_{n}": tf.TensorSpec([batch, *given.shape], tf.as_dtype(given.dtype))
            for n, given in enumerate(self._task.inputs)
        }

    def _batch(self) -> dict[str, tf.TensorSpec]:
        """Return the inputs that are a batch: examples, and which of them count."""
        importance = tf.TensorSpec([self._options.batch_size], tf.float32)
        return {**self._examples(), "importance": importance}

    def _target(self) -> dict[str, tf.TensorSpec]:
        """Return the inputs that are the batch's targets, none if that is the input itself."""
        specs = {}
        for name, target in zip(self._names("target"), self._task.target.each, strict=True):
            if target.kind is not TargetKind.INPUT:
                dtype = tf.int32 if target.kind is TargetKind.CLASS else tf.float32
                specs[name] = tf.TensorSpec([self._options.batch_size, *target.shape], dtype)
        return specs

    def _names(self, what: str) -> list[str]:
        """Return the names of a tensor for each target: numbered if there are several."""
        count = len(self._task.target.parts)
        return [f"{what}_{n}" for n in range(count)] or [what]

    def _weights(self) -> dict[str, tf.TensorSpec]:
        """Return the inputs that are the weights."""
        # Scalars get an axis: one without crashes LiteRT's signature runner on aarch64.
        return {
            f"weight_{k}": tf.TensorSpec(spec.shape or (1,), tf.float32)
            for k, spec in enumerate(self._manifest)
        }

    def _inputs(self) -> dict[str, tf.TensorSpec]:
        """Return the inputs of the signature `train`."""
        specs = {
            **self._batch(),
            **self._target(),
            "learning_rate": tf.TensorSpec([1], tf.float32),
            "step": tf.TensorSpec([1], tf.float32),
        }
        for k, spec in enumerate(self._manifest):
            shape = spec.shape or (1,)
            specs[f"weight_{k}"] = tf.TensorSpec(shape, tf.float32)
            if self._masked[k]:
                specs[f"mask_{k}"] = tf.TensorSpec(shape, tf.float32)
            if id(self._variables[k]) in self._trainable:
                for s in range(self._optimizer.slots):
                    specs[f"slot_{k}_{s}"] = tf.TensorSpec(shape, tf.float32)
        for n, shape in enumerate(self._noises):
            specs[f"noise_{n}"] = tf.TensorSpec(shape, tf.float32)
        return specs

    def training(self) -> Any:
        """Return the training step as a tf.function of named inputs."""
        return _function(self._inputs(), self._update)

    def answering(self) -> Any:
        """Return the model's inference as a tf.function of named inputs."""

        def answer(given: dict[str, Tensor]) -> dict[str, Tensor]:
            weights = [given[f"weight_{k}"] for k in range(len(self._manifest))]
            values = {id(v): w for v, w in zip(self._variables, weights, strict=True)}
            importance = given["importance"]
            forward = ForwardPass(values, importance, tf.zeros, training=False)
            outputs = self._run(given, forward)
            return dict(zip(self._names("output"), outputs, strict=True))

        return _function({**self._batch(), **self._weights()}, answer)

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
            outputs = self._run(given, forward)
            count = tf.reduce_sum(importance, keepdims=True)
            means = [
                tf.reduce_sum(losses * importance, keepdims=True) / count
                for losses in self._losses(given, outputs, forward)
            ]
            mean = self._total(means)
            for penalty in forward.penalties.values():
                mean = mean + penalty
        gradients = tape.gradient(mean, [weights[k] for k in trainable])
        results = {"loss": mean}
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

    def _seen(self, number: int, given: dict[str, Tensor], forward: ForwardPass) -> Tensor:
        """Return an input as the model sees it."""
        part, x = self._task.inputs[number], given[f"input_{number}"]
        if part.dtype != "uint8":
            return x
        # The very floats that Keras sees: a last bit here is a last bit everywhere.
        return tf.cast(x, tf.float32) / (part.divide_by * forward.one)

    def _run(self, given: dict[str, Tensor], forward: ForwardPass) -> list[Tensor]:
        """Return the model's outputs for a batch, one for each target."""
        seen = [self._seen(n, given, forward) for n in range(len(self._task.inputs))]
        return _run_model(self._model, seen, forward)

    def _losses(
        self, given: dict[str, Tensor], outputs: list[Tensor], forward: ForwardPass
    ) -> list[Tensor]:
        """Return the losses [B] of each target."""
        made = []
        for task, name, output in zip(
            self._task.parts, self._names("target"), outputs, strict=True
        ):
            assert task.loss is not None, "a single target always has a loss"
            wanted = self._wanted(task.target, given.get(name), given, output, forward)
            logits = forward.logits.get(output.ref())
            made.append(example_losses(task.loss, output, wanted, logits))
        return made

    def _total(self, means: list[Tensor]) -> Tensor:
        """Return the weighted sum of the mean losses, [1], in Keras' order."""
        targets = self._task.target.each
        weighted = [
            mean if target.weight == 1 else mean * target.weight
            for mean, target in zip(means, targets, strict=True)
        ]
        total = weighted[0]
        for mean in weighted[1:]:
            total = total + mean
        return total

    def _wanted(
        self,
        target: Target,
        stored: Tensor | None,
        given: dict[str, Tensor],
        output: Tensor,
        forward: ForwardPass,
    ) -> Tensor:
        """Return the batch's targets in the shape of the output; classes are one-hot."""
        if target.kind is TargetKind.INPUT:
            return self._seen(0, given, forward)
        if target.kind is not TargetKind.CLASS:
            return tf.reshape(stored, output.shape)
        if output.shape[-1] != len(target.class_names):  # the probability of the second class
            return tf.reshape(tf.cast(stored, tf.float32), output.shape)
        return tf.one_hot(stored, output.shape[-1])


def _function(
    inputs: dict[str, tf.TensorSpec], compute: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> Any:
    """Return a tf.function of named inputs."""
    signature = [tf.TensorSpec(s.shape, s.dtype, name=name) for name, s in inputs.items()]

    @tf.function(input_signature=signature, autograph=False)  # type: ignore[untyped-decorator]
    def run(*tensors: Tensor) -> dict[str, Tensor]:
        return compute(dict(zip(inputs, tensors, strict=True)))

    return run


def _run_model(model: Any, inputs: Sequence[Tensor], forward: ForwardPass) -> list[Tensor]:
    """Follow a Keras model's graph, nested models included; return its outputs in order."""
    made = {id(keras): tensor for keras, tensor in zip(model.inputs, inputs, strict=True)}
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if node.is_input:
                continue
            taken = [made[id(keras)] for keras in tf.nest.flatten(node.keras_inputs)]
            outputs = tf.nest.flatten(node.outputs)
            for output, tensor in zip(outputs, _run_node(node, taken, forward), strict=True):
                made[id(output)] = tensor
    return [made[id(output)] for output in model.outputs]


def _run_node(node: Any, inputs: list[Tensor], forward: ForwardPass) -> list[Tensor]:
    layer = node.layer
    with called(node, inputs, forward):
        if is_model(layer):
            return _run_model(layer, inputs, forward)
        if is_quantizing(layer):
            return [run_quantized(layer, inputs, forward)]
        return [run_layer(layer, inputs, forward)]


def _convert(function: Any, signature: str, what: str) -> bytes:
    module = tf.Module()
    module.run = function
    with (
        tempfile.TemporaryDirectory(prefix="featherfed-") as scratch,
        warnings.catch_warnings(),
        _without_gradient_warnings(),
    ):
        warnings.simplefilter("ignore")
        path = str(Path(scratch) / "step")
        # Nobody differentiates the saved function: its gradients would be traced for nothing.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, path, signatures={signature: function}, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=[signature])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            with without_noise():
                return bytes(converter.convert())
        except Exception as error:  # the converter raises its own kinds, without a public base
            raise ExportError(
                f"{what}: TFLite has no operators for its training step ({str(error)[:200]}); use "
                "Keras clients (--runtime keras)"
            ) from error


@contextmanager
def _without_gradient_warnings() -> Iterator[None]:
    """Drop the loader's warnings of gradients that were not saved."""

    def wanted(record: logging.LogRecord) -> bool:
        return "unsaved custom gradients" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
