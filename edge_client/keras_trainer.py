"""Training with Keras and TFMOT; the only module of the client that needs TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.datasets.order import round_seed
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.trainer import OnStep, TrainingResult
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import DEFAULT_LOSS, Loss, Method, Optimizer

METHODS = tuple(method.value for method in Method)
"""The optimisation methods this trainer can do."""


class KerasTrainer:
    """Trains the plan's model on `images` (uint8 [N, H, W, C]) and `labels` (int64 [N])."""

    def __init__(
        self,
        plan: pb.Plan,
        manifest: Manifest,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        *,
        client: str,
        on_step: OnStep | None = None,
        model: FederatedModel | None = None,
    ) -> None:
        """Build the plan's model, unless `model` is given to be shared.

        Raises ClientError if this client builds another model from the plan than the server, or
        does not support its method, optimizer or loss.
        """
        try:
            method = Method(plan.optimization.method)
            self._optimizer = Optimizer(plan.training.optimizer)
            self._loss = Loss(plan.training.loss or DEFAULT_LOSS)
        except ValueError as error:
            raise ClientError(
                f"the plan asks for {plan.optimization.method!r} with "
                f"{plan.training.optimizer!r} and the loss {plan.training.loss!r}, which this "
                "client cannot do; update featherfed on it"
            ) from error
        optimization = Optimization(method, num_clusters=plan.optimization.num_clusters)
        self._model = model or FederatedModel(plan.model_json, optimization)
        if self._model.manifest.digest != manifest.digest:
            raise ClientError(
                "this client's Keras builds the plan's model with other tensors than the server's; "
                "use the same featherfed and Keras versions on both"
            )
        self._training = plan.training
        self._seed = plan.seed
        self._client = client
        self._images = images
        self._labels = labels
        self._on_step = on_step

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Train for the plan's epochs from `weights`; the order of examples is seeded."""
        self._model.set_weights(weights)
        on_step = self._on_step
        loss, accuracy = self._model.fit(
            self._images,
            self._labels,
            epochs=self._training.epochs,
            batch_size=self._training.batch_size,
            learning_rate=self._training.learning_rate,
            optimizer=self._optimizer,
            loss=self._loss,
            sparsity=task.sparsity,
            seed=round_seed(self._seed, task.round, self._client),
            on_step=None
            if on_step is None
            else lambda done, total: on_step(task.round, done, total),
        )
        return TrainingResult(self._model.get_weights(), loss, accuracy)
