"""Training with Keras and TFMOT, or by a user's loop: all of a client that needs TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.order import round_seed
from featherfed.edge_client.calibration import (
    calibrated,
    calibration_batches,
    without_averages,
)
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.trainer import KerasLoop, OnStep, TrainingResult
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.models.tensorflow_lock import TENSORFLOW_LOCK
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method, Optimizer
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Scoring, Sums, evaluate

METHODS = tuple(method.value for method in Method)
"""The optimisation methods this trainer can do."""
LOOP_METHODS = tuple(method for method in METHODS if method != Method.CLUSTER)
"""Those that a user's own loop can do."""


class KerasTrainer:
    """Trains and evaluates the plan's model with tf_keras."""

    def __init__(
        self,
        plan: pb.Plan,
        manifest: Manifest,
        examples: Examples,
        *,
        client: str,
        on_step: OnStep | None = None,
        model: FederatedModel | None = None,
    ) -> None:
        """Build the plan's model, unless `model` is given to be shared.

        Raises ClientError if this client builds another model from the plan than the server, or
        does not support its method or optimizer.
        """
        try:
            method = Method(plan.optimization.method)
            self._optimizer = Optimizer(plan.training.optimizer)
        except ValueError as error:
            raise ClientError(
                f"the plan asks for {plan.optimization.method!r} with "
                f"{plan.training.optimizer!r}, which this client cannot do; update featherfed on it"
            ) from error
        optimization = Optimization(method, num_clusters=plan.optimization.num_clusters)
        with TENSORFLOW_LOCK:
            self._model = model or FederatedModel(plan.model_json, optimization, examples.task)
        if self._model.manifest.digest != manifest.digest:
            raise ClientError(
                "this client's Keras builds the plan's model with other tensors than the server's; "
                "use the same featherfed and Keras versions on both"
            )
        self._training = plan.training
        self._seed = plan.seed
        self._client = client
        self._examples = examples
        self._on_step = on_step

    @property
    def examples(self) -> Examples:
        """The client's examples, standardised as they are trained on."""
        return self._examples

    def set_scaling(self, scaling: Scaling) -> None:
        """Standardise the data by `scaling` from now on."""
        self._examples = self._examples.scaled(scaling)

    def set_examples(self, examples: Examples) -> None:
        """Train and evaluate on other examples from now on, standardised as the former ones."""
        self._examples = examples.scaled(self._examples.scaling)

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Train for the plan's epochs from `weights`; the order of examples is seeded."""
        with TENSORFLOW_LOCK:
            return self._train(weights, task)

    def _train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        self._model.set_weights(weights)
        on_step = self._on_step
        loss = self._model.fit(
            *self._examples.prepared,
            epochs=self._training.epochs,
            batch_size=self._training.batch_size,
            learning_rate=self._training.learning_rate,
            optimizer=self._optimizer,
            sparsity=task.sparsity,
            seed=round_seed(self._seed, task.round, self._client),
            on_step=None
            if on_step is None
            else lambda done, total: on_step(task.round, done, total),
        )
        return TrainingResult(self._model.get_weights(), loss)

    def calibrate(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Measure the moving averages of `weights` by batches of seeded examples."""
        training, manifest = self._training, self._model.manifest
        seed = round_seed(self._seed, task.round, self._client)
        steps, chosen = calibration_batches(self._examples, training.batch_size, seed)
        with TENSORFLOW_LOCK:
            self._model.set_weights(without_averages(manifest, weights))
            loss = self._model.fit(
                *self._examples.batch(chosen),
                batch_size=training.batch_size,
                learning_rate=0.0,
                optimizer=self._optimizer,
                seed=seed,
            )
            measured = self._model.get_weights()
        return TrainingResult(calibrated(manifest, weights, measured, steps), loss)

    def evaluate(self, weights: Sequence[Array]) -> Sums | None:
        """Return the sums on the held-out examples, None if there are none."""
        examples = self._examples
        if examples.held_out is None:
            return None
        with TENSORFLOW_LOCK:
            self._model.set_weights(weights)
            return examples.held_out_sums(self._model.predict)


class LoopTrainer(KerasTrainer):
    """Trains the plan's model with tf_keras by a function of the user; evaluates as any other."""

    def __init__(
        self,
        plan: pb.Plan,
        manifest: Manifest,
        examples: Examples,
        *,
        client: str,
        loop: KerasLoop,
        model: FederatedModel | None = None,
    ) -> None:
        """As of KerasTrainer; raises ClientError, too, for a method that such a loop cannot do."""
        super().__init__(plan, manifest, examples, client=client, model=model)
        if plan.optimization.method not in LOOP_METHODS:
            raise ClientError(
                f"a training loop of your own cannot do the method {plan.optimization.method!r}; "
                "leave out trainer="
            )
        self._loop = loop

    def _train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Call the loop with the model at `weights`; what is masked stays zero."""
        model, examples = self._model, self._examples
        model.set_weights(weights)
        keras = model.compiled(self._optimizer, self._training.learning_rate)
        inputs, targets = examples.prepared
        returned = self._loop(keras, *model.for_keras(inputs, targets), task.round)
        loss = _loss_of(returned)
        masks = magnitude_masks(model.manifest, weights, task.sparsity)
        trained = mask_weights(model.get_weights(), masks)
        if loss is None:
            stored = examples.training
            sums = evaluate(
                Scoring(examples.task, examples.scaling), model.predict, inputs, stored.targets
            )
            loss = float(sums[1] / sums[0])
        return TrainingResult(trained, loss)


def _loss_of(returned: Any) -> float | None:
    """Return the loss in what a loop has returned: a number, or the history of Keras' fit."""
    if returned is None:
        return None
    history = getattr(returned, "history", None)
    if isinstance(history, dict) and history.get("loss"):
        return float(history["loss"][-1])
    try:
        return float(returned)
    except (TypeError, ValueError):
        raise ClientError(
            f"the training loop returned {type(returned).__name__}; return the mean loss, what "
            "Keras' fit returns, or nothing"
        ) from None
