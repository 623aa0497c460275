"""Training with Keras and TFMOT; the only module of the client that needs TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.datasets.order import round_seed
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.trainer import OnStep, TrainingResult
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method, Optimizer
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Scoring, Sums, evaluate

METHODS = tuple(method.value for method in Method)
"""The optimisation methods this trainer can do."""


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

    def set_scaling(self, scaling: Scaling) -> None:
        """Standardise the data by `scaling` from now on."""
        self._examples = self._examples.scaled(scaling)

    def set_examples(self, examples: Examples) -> None:
        """Train and evaluate on other examples from now on, standardised as the former ones."""
        self._examples = examples.scaled(self._examples.scaling)

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Train for the plan's epochs from `weights`; the order of examples is seeded."""
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

    def evaluate(self, weights: Sequence[Array]) -> Sums | None:
        """Return the sums on the held-out examples, None if there are none."""
        examples = self._examples
        if examples.held_out is None:
            return None
        self._model.set_weights(weights)
        return evaluate(
            Scoring(examples.task, examples.scaling),
            self._model.predict,
            examples.held_out.inputs,
            examples.held_out.targets,
            prepare=examples.scaling.prepare,
        )
