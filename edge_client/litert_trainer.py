"""Training with LiteRT and numpy alone, by the training step that the server exported.

docs/training-step.md describes the step's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.masks import magnitude_masks, mask_weights
from featherfed.datasets.order import epoch_order, round_seed
from featherfed.edge_client.calibration import (
    calibrated,
    calibration_batches,
    without_averages,
)
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.step_interpreter import TrainingStep
from featherfed.edge_client.step_process import StepProcess
from featherfed.edge_client.step_tensors import StepTensors
from featherfed.edge_client.trainer import OnStep, TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.plan_terms import Method
from featherfed.tasks.records import together
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Sums
from featherfed.tasks.task import Values

METHODS = tuple(method.value for method in Method if not method.needs_keras)
"""The optimisation methods this trainer can do."""


class LitertTrainer:
    """Trains and evaluates the plan's model by its exported training step."""

    def __init__(
        self,
        plan: pb.Plan,
        manifest: Manifest,
        step: bytes,
        examples: Examples,
        *,
        client: str,
        threads: int = 1,
        on_step: OnStep | None = None,
        trusted: bool = False,
    ) -> None:
        """Load `step` in a process of its own, or in this one if it is `trusted`.

        Raises ClientError if the step is damaged or does not fit the plan and the data, and so does
        `train` if the step fails or crashes its process.
        """
        load = TrainingStep if trusted else StepProcess
        shapes = [spec.shape for spec in manifest]
        self._task = examples.task
        self._tensors = StepTensors.of(self._task)
        self._step = load(step, shapes, self._tensors, threads)
        _check_plan(self._step, plan, manifest)
        self._manifest = manifest
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
        step = self._step
        masks = magnitude_masks(self._manifest, weights, task.sparsity)
        seed = round_seed(self._seed, task.round, self._client)
        # Seeds [seed, 0] to [seed, epochs - 1] draw the order of examples of each epoch.
        noise_seed = [seed, self._training.epochs]
        step.begin(weights, masks, self._training.learning_rate, noise_seed)
        count, batch = len(self._examples.training), step.batch_size
        total = self._training.epochs * -(-count // batch)
        loss, done = 0.0, 0

        def on_batch() -> None:
            nonlocal done
            done += 1
            if self._on_step is not None:
                self._on_step(task.round, done, total)

        for epoch in range(self._training.epochs):
            loss = self._run(epoch_order(count, epoch, seed), on_batch)
        # Masked again, as the step leaves -0.0 where it masked a negative value.
        return TrainingResult(mask_weights(step.weights(), masks), loss)

    def calibrate(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        """Measure the moving averages of `weights` by batches of seeded examples."""
        step, manifest = self._step, self._manifest
        masks = magnitude_masks(manifest, weights, task.sparsity)
        seed = round_seed(self._seed, task.round, self._client)
        steps, chosen = calibration_batches(self._examples, step.batch_size, seed)
        step.begin(without_averages(manifest, weights), masks, 0.0, [seed, 1])
        loss = self._run(chosen[epoch_order(len(chosen), 0, seed)])
        return TrainingResult(calibrated(manifest, weights, step.weights(), steps), loss)

    def _run(self, order: Any, on_batch: Callable[[], None] = lambda: None) -> float:
        """Run steps on the examples `order`, int64 [N]; return their mean loss."""
        step, loss = self._step, 0.0
        for start in range(0, len(order), step.batch_size):
            chosen = order[start : start + step.batch_size]
            inputs, targets = self._examples.batch(chosen)
            loss += step.run(inputs, self._tensors.target_values(targets)) * len(chosen)
            on_batch()
        return loss / len(order)

    def evaluate(self, weights: Sequence[Array]) -> Sums | None:
        """Return the sums on the held-out examples, None if there are none."""
        if self._examples.held_out is None:
            return None
        self._step.set_answering(weights)
        return self._examples.held_out_sums(self._answers, self._step.batch_size)

    def _answers(self, inputs: Sequence[Values]) -> Values:
        """Return the model's answers, to several targets as records."""
        return together(self._step.answer(inputs), self._tensors.names)


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
