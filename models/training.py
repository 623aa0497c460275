"""Fits a compiled Keras model round after round, and runs it for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from featherfed.datasets.order import epoch_order
from featherfed.proto.plan_terms import DEFAULT_LOSS, Loss, Optimizer

Images = npt.NDArray[np.uint8]
"""uint8 [N, height, width, channels]."""
Labels = npt.NDArray[np.integer[Any]]
"""Integers [N]."""
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


@dataclass(frozen=True)
class Recipe:
    """What a model is compiled with: an optimizer and a loss."""

    optimizer: Optimizer = Optimizer.SGD
    loss: Loss = DEFAULT_LOSS


class Fitter:
    """Compiles `model` once and fits it many times, each time with a fresh optimizer state."""

    def __init__(self, model: Any, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model = model
        self._optimizer = _OPTIMIZERS[recipe.optimizer]()
        self._one_hot = int(model.output_shape[-1]) if recipe.loss.is_one_hot else 0
        self._batches = _Batches(model.input_shape[1:], self._one_hot)
        self._optimizer.build(model.trainable_variables)
        # No jit_compile: on a CPU, XLA halves the speed of the cnn and takes 8 s to compile.
        model.compile(
            self._optimizer,
            recipe.loss.value,
            # By the largest output, whatever the loss: Keras would take a threshold for some.
            metrics=["categorical_accuracy" if self._one_hot else "sparse_categorical_accuracy"],
            steps_per_execution=_STEPS_AT_ONCE,
        )
        self._make_metrics()

    def fit(
        self,
        images: Images,
        labels: Labels,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        on_step: OnStep | None = None,
        callbacks: Sequence[Any] = (),
    ) -> tuple[float, float]:
        """Train in place and return loss and accuracy of the last epoch."""
        self._reset(learning_rate)
        steps = -(-len(images) // batch_size)
        extra = [_Progress(on_step, epochs, steps)] if on_step else []
        history = self.model.fit(
            self._batches.of(images, labels, epochs, batch_size, seed),
            epochs=epochs,
            steps_per_epoch=steps,
            verbose=0,
            callbacks=[*callbacks, *extra],
        ).history
        accuracy = history[self.model.metrics_names[-1]]
        return float(history["loss"][-1]), float(accuracy[-1])

    def _make_metrics(self) -> None:
        # Metrics make their variables at the first batch: within the step, it is traced twice.
        answers = tf.zeros([1, self._one_hot]) if self._one_hot else tf.zeros([1], tf.int64)
        outputs = tf.zeros([1, self.model.output_shape[-1]])
        self.model.compute_loss(y=answers, y_pred=outputs)
        self.model.compute_metrics(None, answers, outputs, None)
        self.model.reset_metrics()

    def _reset(self, learning_rate: float) -> None:
        # All state of these optimizers starts at zero; recompiling would trace the step again.
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self._optimizer.learning_rate = learning_rate


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

    Labels are integers, or one-hot vectors of length `one_hot` if that is not 0.
    """

    def __init__(self, input_shape: Sequence[int], one_hot: int) -> None:
        def pipeline(pixels: Any, classes: Any, orders: Any, batch_size: Any) -> Any:
            def load(chosen: Any) -> tuple[Any, Any]:
                answers = tf.gather(classes, chosen)
                return to_float(tf.gather(pixels, chosen)), (
                    tf.one_hot(answers, one_hot) if one_hot else answers
                )

            epochs_of_batches = tf.data.Dataset.from_tensor_slices(orders).flat_map(
                lambda order: tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
            )
            options = tf.data.Options()
            # There is nothing to tune, and the tuner's thread sleeps up to a minute before it lets
            # go of a pipeline that has ended.
            options.autotune.enabled = False
            return epochs_of_batches.map(load).prefetch(2).with_options(options)

        self._pipeline = tf.function(
            pipeline,
            input_signature=[
                tf.TensorSpec([None, *input_shape], tf.uint8),
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([None, None], tf.int64),
                tf.TensorSpec([], tf.int64),
            ],
        )

    def of(self, images: Images, labels: Labels, epochs: int, batch_size: int, seed: int) -> Any:
        """Return all epochs as one dataset; images become floats batch by batch."""
        orders = np.stack([epoch_order(len(images), epoch, seed) for epoch in range(epochs)])
        # The CPU's memory, also where there is a GPU: the pipeline runs on the CPU.
        with tf.device("/CPU:0"):
            return self._pipeline(
                tf.constant(images),
                tf.constant(labels.astype(np.int64)),
                tf.constant(orders),
                tf.constant(batch_size, tf.int64),
            )


def to_float(images: Any) -> Any:
    """Return uint8 images as a model takes them: float32 from 0 to 1."""
    return tf.cast(images, tf.float32) / 255.0


class Predictor:
    """Runs a model on uint8 images in batches, traced once."""

    def __init__(self, model: Any, batch_size: int = 250) -> None:
        signature = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)
        self._run = tf.function(
            lambda images: model(to_float(images), training=False), input_signature=[signature]
        )
        self._batch_size = batch_size

    def predict(self, images: Images) -> npt.NDArray[np.float32]:
        """Return float32 probabilities [N, classes]; N must not be 0."""
        starts = range(0, len(images), self._batch_size)
        parts = [self._run(images[start : start + self._batch_size]).numpy() for start in starts]
        return np.concatenate(parts)

    def evaluate(self, images: Images, labels: Labels) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy."""
        probabilities = self.predict(images)
        chosen = probabilities[np.arange(len(labels)), labels]
        loss = -np.log(np.clip(chosen, 1e-7, 1 - 1e-7), dtype=np.float64).mean()
        return float(loss), float((probabilities.argmax(axis=1) == labels).mean())
