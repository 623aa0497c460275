"""Training with LiteRT and numpy alone, by the training step that the server exported.

docs/training-step.md describes the step's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.order import epoch_order, round_seed
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.step_interpreter import TrainingStep
from featherfed.edge_client.step_process import StepProcess
from featherfed.edge_client.trainer import OnStep, TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method

METHODS = tuple(method.value for method in Method if not method.needs_keras)
"""The optimisation methods this trainer can do."""


class LitertTrainer:
    """Trains the plan's model on `images` (uint8 [N, H, W, C]) and `labels` (int64 [N])."""

    def __init__(
        self,
        plan: pb.Plan,
        manifest: Manifest,
        step: bytes,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        *,
        client: str,
        threads: int = 1,
        on_step: OnStep | None = None,
        trusted: bool = False,
    ) -> None:
        """Load `step`, a .tflite, in a process of its own, or in this one if it is `trusted`.

        Raises ClientError if the step is damaged or does not fit the plan and the data, and so does
        `train` if the step fails or crashes its process.
        """
        load = TrainingStep if trusted else StepProcess
        shapes = [spec.shape for spec in manifest]
        self._step = load(step, shapes, images.shape[1:], threads)
        _check_plan(self._step, plan, manifest)
        self._manifest = manifest
        self._training = plan.training
        self._seed = plan.seed
        self._client = client
        self._images = images
        self._labels = labels.astype(np.int32)
        self._on_step = on_step

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Train for the plan's epochs from `weights`; the order of examples is seeded."""
        step = self._step
        masks = magnitude_masks(self._manifest, weights, task.sparsity)
        seed = round_seed(self._seed, task.round, self._client)
        # Seeds [seed, 0] to [seed, epochs - 1] draw the order of examples of each epoch.
        noise_seed = [seed, self._training.epochs]
        step.begin(weights, masks, self._training.learning_rate, noise_seed)
        count, batch = len(self._images), step.batch_size
        total = self._training.epochs * -(-count // batch)
        done = 0
        for epoch in range(self._training.epochs):
            order = epoch_order(count, epoch, seed)
            loss = num_correct = 0.0
            for start in range(0, count, batch):
                chosen = order[start : start + batch]
                mean, correct = step.run(self._images[chosen], self._labels[chosen])
                loss += mean * len(chosen)
                num_correct += correct
                done += 1
                if self._on_step is not None:
                    self._on_step(task.round, done, total)
        # Masked again, as the step leaves -0.0 where it masked a negative value.
        trained = mask_weights(step.weights(), masks)
        return TrainingResult(trained, loss / count, num_correct / count)


def _check_plan(step: TrainingStep | StepProcess, plan: pb.Plan, manifest: Manifest) -> None:
    if plan.optimization.method not in METHODS:
        raise ClientError(
            f"the plan asks for {plan.optimization.method!r}, which this client cannot do; update "
            "featherfed on it"
        )
    if step.batch_size != plan.training.batch_size:
        raise ClientError(
            f"the server's training step takes {step.batch_size} examples at once, and its plan "
            f"says {plan.training.batch_size}; refused"
        )
    prunes = Method(plan.optimization.method).prunes
    if step.masked != {k for k, spec in enumerate(manifest) if prunes and spec.prunable}:
        raise ClientError(
            f"the server's training step masks the tensors {sorted(step.masked)}, which is not "
            f"what its plan ({plan.optimization.method}) prunes; refused"
        )
