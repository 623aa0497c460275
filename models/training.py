"""Fits a compiled Keras model round after round, and runs it for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from featherfed.datasets.order import epoch_order
from featherfed.proto.plan_terms import Loss, Optimizer
from featherfed.tasks.arrays import is_on_disk, read
from featherfed.tasks.records import fields, together
from featherfed.tasks.task import TargetKind, Task, Values

Inputs = Sequence[Values]
"""A task's inputs, prepared (see Scaling.prepare): [N, ...] each."""
OnStep = Callable[[int, int], None]
"""Called every few optimizer steps with the number of those done and of all."""

_OPTIMIZERS: dict[Optimizer, Callable[[], Any]] = {
    Optimizer.SGD: tf_keras.optimizers.SGD,
    Optimizer.MOMENTUM: lambda: tf_keras.optimizers.SGD(momentum=0.9),
    Optimizer.NESTEROV: lambda: tf_keras.optimizers.SGD(momentum=0.9, nesterov=True),
    Optimizer.ADAM: tf_keras.optimizers.Adam,
}
_STEPS_AT_ONCE = 25
"""Optimizer steps between two returns to Python: faster, and the same weights bit for bit."""


class Fitter:
    """Compiles `model` once and fits it many times, each time with a fresh optimizer state."""

    def __init__(self, model: Any, task: Task, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.model = model
        self._task = task
        self._optimizer = _OPTIMIZERS[optimizer]()
        self._batches = _Batches(task, output_shapes(model))
        self._optimizer.build(model.trainable_variables)
        # No jit_compile: on a CPU, XLA halves the speed of the cnn and takes 8 s to compile.
        model.compile(self._optimizer, **_losses(task), steps_per_execution=_STEPS_AT_ONCE)
        self._make_metrics()

    def fit(
        self,
        inputs: Inputs,
        targets: Values | None,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        on_step: OnStep | None = None,
        callbacks: Sequence[Any] = (),
    ) -> float:
        """Train in place and return the mean loss of the last epoch."""
        self._reset(learning_rate)
        steps = -(-len(inputs[0]) // batch_size)
        extra = [_Progress(on_step, epochs, steps)] if on_step else []
        history = self.model.fit(
            self._batches.of(inputs, targets, epochs, batch_size, seed),
            epochs=epochs,
            steps_per_epoch=steps,
            verbose=0,
            callbacks=[*callbacks, *extra],
        ).history
        return float(history["loss"][-1])

    def _make_metrics(self) -> None:
        # Metrics make their variables at the first batch: within the step, it is traced twice.
        outputs = [tf.zeros([1, *shape]) for shape in output_shapes(self.model)]
        answers = [
            tf.zeros([1, *output.shape[1:-1]], tf.int64)
            if part.loss is Loss.SPARSE_CATEGORICAL_CROSSENTROPY
            else output
            for part, output in zip(self._task.parts, outputs, strict=True)
        ]
        self.model.compute_loss(y=_alone(answers), y_pred=_alone(outputs))
        self.model.reset_metrics()

    def _reset(self, learning_rate: float) -> None:
        # All state of these optimizers starts at zero; recompiling would trace the step again.
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self._optimizer.learning_rate = learning_rate


def compile_afresh(model: Any, task: Task, optimizer: Optimizer, learning_rate: float) -> None:
    """Compile a model as a `Fitter` does, with a new optimizer, for another loop than its own."""
    made = _OPTIMIZERS[optimizer]()
    made.learning_rate = learning_rate
    model.compile(made, **_losses(task))


def _losses(task: Task) -> dict[str, Any]:
    """Return the loss of Keras' compile, of several targets a list with weights."""
    if not task.target.parts:
        return {"loss": str(task.loss)}
    targets = task.target.parts
    return {
        "loss": [str(target.loss) for target in targets],
        "loss_weights": [target.weight for target in targets],
    }


def output_shapes(model: Any) -> list[tuple[int, ...]]:
    """Return the shape of each of a model's answers to one example."""
    return [tuple(output.shape[1:]) for output in model.outputs]


def _alone(parts: Sequence[Any]) -> Any:
    """Return the only one of some tensors as it is, several as a tuple, as Keras takes them."""
    return parts[0] if len(parts) == 1 else tuple(parts)


def fit_arguments(
    task: Task, inputs: Inputs, targets: Values | None, shapes: Sequence[Sequence[int]]
) -> tuple[Any, Any]:
    """Return prepared inputs and targets as x and y of Keras' fit, numpy arrays.

    `shapes`: of the model's answers to one example. x is a tuple of arrays for several inputs, and
    y for several targets.
    """
    with tf.device("/CPU:0"):
        seen = [values.numpy() for values in see_batch(task, list(map(tf.constant, inputs)))]
        known = np.zeros(len(inputs[0]), np.float32) if targets is None else targets
        stored = list(map(tf.constant, fields(known, task.target.names)))
        answers = list(map(np.asarray, _answers(task, seen, stored, shapes)))
    return _alone(seen), _alone(answers)


class _Progress(tf_keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, on_step: OnStep, epochs: int, steps: int) -> None:
        super().__init__()
        self._on_step, self._total, self._steps, self._before = on_step, epochs * steps, steps, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._before = epoch * self._steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._on_step(self._before + batch + 1, self._total)


class _Batches:
    """Makes the input of a fit: a tf.data pipeline whose functions are traced once.

    Examples in memory become tensors, of which it gathers each batch. Those on disk are read batch
    by batch.
    """

    def __init__(self, task: Task, shapes: Sequence[Sequence[int]]) -> None:
        """`shapes`: of the model's answers to one example."""
        specs = [tf.TensorSpec([None, *i.shape], tf.as_dtype(i.dtype)) for i in task.inputs]
        count = len(specs)
        for target in task.target.each:
            stored = tf.int64 if target.kind is TargetKind.CLASS else tf.float32
            specs.append(tf.TensorSpec([None, *target.shape], stored))
        orders = [tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([], tf.int64)]

        def seen(batch: Sequence[Any]) -> tuple[Any, Any]:
            """Return inputs and answers as the model and the loss take them."""
            inputs = see_batch(task, batch[:count])
            answers = _answers(task, inputs, batch[count:], shapes)
            return _alone(inputs), _alone(answers)

        def gathered(arrays: Sequence[Any], orders: Any, batch_size: Any) -> Any:
            return _pipeline(
                orders, batch_size, lambda at: seen([tf.gather(values, at) for values in arrays])
            )

        def loaded(orders: Any, batch_size: Any) -> Any:
            def load(chosen: Any) -> tuple[Any, Any]:
                batch = tf.numpy_function(self._read, [chosen], [spec.dtype for spec in specs])
                for values, spec in zip(batch, specs, strict=True):
                    values.set_shape(spec.shape)
                return seen(batch)

            return _pipeline(orders, batch_size, load)

        self._names = task.target.names
        self._stored = [spec.dtype.as_numpy_dtype for spec in specs[count:]]
        self._gathered = tf.function(gathered, input_signature=[specs, *orders])
        self._loaded = tf.function(loaded, input_signature=orders)
        self._on_disk: list[Values] = []

    def of(
        self, inputs: Inputs, targets: Values | None, epochs: int, batch_size: int, seed: int
    ) -> Any:
        """Return all epochs as one dataset; bytes become floats batch by batch."""
        count = len(inputs[0])
        orders = np.stack([epoch_order(count, epoch, seed) for epoch in range(epochs)])
        known = np.zeros(count, self._stored[0]) if targets is None else targets
        arrays = [*inputs, known]
        # The CPU's memory, also where there is a GPU: the pipeline runs on the CPU.
        with tf.device("/CPU:0"):
            order = tf.constant(orders), tf.constant(batch_size, tf.int64)
            if any(map(is_on_disk, arrays)):
                self._on_disk = arrays
                return self._loaded(*order)
            arrays[-1:] = self._split(known)
            return self._gathered([tf.constant(values) for values in arrays], *order)

    def _read(self, chosen: Any) -> list[Values]:
        """Return the inputs and targets of a batch of the examples on disk, int64 [n]."""
        batch = [read(values, chosen) for values in self._on_disk]
        return [*batch[:-1], *self._split(batch[-1])]

    def _split(self, targets: Values) -> list[Values]:
        """Return the array of each target, in the dtype that a batch has."""
        parts = zip(fields(targets, self._names), self._stored, strict=True)
        return [values.astype(dtype, copy=False) for values, dtype in parts]


def _pipeline(orders: Any, batch_size: Any, load: Callable[[Any], tuple[Any, Any]]) -> Any:
    """Return the batches that `load` makes of the examples in the order of each epoch."""
    batches = tf.data.Dataset.from_tensor_slices(orders).flat_map(
        lambda order: tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
    )
    options = tf.data.Options()
    # There is nothing to tune, and the tuner's thread sleeps up to a minute before it lets go of a
    # pipeline that has ended.
    options.autotune.enabled = False
    return batches.map(load).prefetch(2).with_options(options)


def see_batch(task: Task, inputs: Sequence[Any]) -> list[Any]:
    """Return prepared inputs as a model sees them: bytes become floats."""
    return [
        tf.cast(values, tf.float32) / given.divide_by if given.dtype == "uint8" else values
        for given, values in zip(task.inputs, inputs, strict=True)
    ]


def _answers(
    task: Task, seen: Sequence[Any], targets: Sequence[Any], shapes: Sequence[Sequence[int]]
) -> list[Any]:
    """Return what the losses compare a batch's outputs with, one for each target."""
    return [
        _answer(part, seen, values, shape)
        for part, values, shape in zip(task.parts, targets, shapes, strict=True)
    ]


def _answer(task: Task, seen: Sequence[Any], targets: Any, output_shape: Sequence[int]) -> Any:
    kind = task.target.kind
    if kind is TargetKind.INPUT:
        return seen[0]
    if kind is not TargetKind.CLASS:
        return tf.reshape(targets, [-1, *output_shape])
    if output_shape[-1] != len(task.target.class_names):  # the probability of the second class
        return tf.cast(targets, tf.float32)[..., tf.newaxis]
    if task.loss is Loss.SPARSE_CATEGORICAL_CROSSENTROPY:
        return targets
    return tf.one_hot(targets, output_shape[-1])


class Predictor:
    """Runs a model on prepared inputs in batches, traced once."""

    def __init__(self, model: Any, task: Task, batch_size: int = 250) -> None:
        def run(inputs: Any) -> Any:
            seen = see_batch(task, inputs)
            return tf.nest.flatten(model(seen[0] if len(seen) == 1 else seen, training=False))

        signature = [tf.TensorSpec([None, *i.shape], tf.as_dtype(i.dtype)) for i in task.inputs]
        self._names = task.target.names
        self._run = tf.function(run, input_signature=[signature])
        self._batch_size = batch_size

    def predict(self, inputs: Inputs) -> npt.NDArray[Any]:
        """Return float32 answers [N, ...], to several targets records of such; N must not be 0."""
        parts = []
        for start in range(0, len(inputs[0]), self._batch_size):
            rows = slice(start, start + self._batch_size)
            found = self._run([tf.constant(values[rows]) for values in inputs])
            parts.append(together([answers.numpy() for answers in found], self._names))
        return np.concatenate(parts)
