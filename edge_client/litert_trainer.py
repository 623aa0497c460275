"""Training with LiteRT and numpy alone: runs the training step that the server exported.

docs/training-step.md describes the step's inputs and outputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.compression.manifest import Array, Manifest
from featherfed.compression.masks import magnitude_masks, mask_weights
from featherfed.datasets.order import epoch_order, round_seed
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.session import Trained
from featherfed.proto import federation_pb2 as pb

METHODS = ("none", "prune", "qat", "prune+qat")
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
        on_step: Callable[[int, int, int], None] | None = None,
    ) -> None:
        """Load `step`, a .tflite; `on_step` gets round, steps done and steps in all.

        Raises ClientError if the step is damaged or does not fit the plan's manifest and the data.
        """
        self._step = TrainingStep(step, manifest, images.shape[1:], threads)
        self._manifest = manifest
        self._training = plan.training
        self._seed = plan.seed
        self._client = client
        self._images = images
        self._labels = labels.astype(np.int32)
        self._on_step = on_step

    def train(self, weights: Sequence[Array], task: pb.Train) -> Trained:
        """Return what the plan's epochs make of `weights`; the order of examples is seeded."""
        step = self._step
        masks = magnitude_masks(self._manifest, weights, task.sparsity)
        step.begin(weights, masks, self._training.learning_rate)
        seed = round_seed(self._seed, task.round, self._client)
        noise = np.random.default_rng([seed])
        count, batch = len(self._images), step.batch_size
        total = self._training.epochs * -(-count // batch)
        done = 0
        for epoch in range(self._training.epochs):
            order = epoch_order(count, epoch, seed)
            loss = right = 0.0
            for start in range(0, count, batch):
                chosen = order[start : start + batch]
                mean, correct = step.run(self._images[chosen], self._labels[chosen], noise)
                loss += mean * len(chosen)
                right += correct
                done += 1
                if self._on_step is not None:
                    self._on_step(task.round, done, total)
        # Once more, since masking a negative value has left -0.0.
        return Trained(mask_weights(step.weights(), masks), loss / count, right / count)


class TrainingStep:
    """An exported step in LiteRT's Interpreter, and the weights it works on."""

    def __init__(
        self, content: bytes, manifest: Manifest, example_shape: Sequence[int], threads: int
    ) -> None:
        """Load a .tflite; raise ClientError if it is not the step of this manifest and data."""
        # Never LiteRT's CompiledModel, which aborts on a Raspberry Pi 4.
        module = importlib.import_module("ai_edge_litert.interpreter")
        try:
            self._interpreter: Any = module.Interpreter(
                model_content=content, num_threads=max(1, threads)
            )
            self._inputs, self._outputs = _details(self._interpreter)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ClientError(f"the server's training step cannot be used: {error}") from error
        self._check(manifest, tuple(example_shape))
        self._shapes = [spec.shape for spec in manifest]
        self.batch_size = int(self._inputs["images"]["shape"][0])
        self._state = [
            (self._inputs[name]["index"], self._outputs[f"new_{name}"]["index"])
            for name in self._inputs
            if name.startswith(("weight_", "slot_"))
        ]
        self._noises = [d for n, d in self._inputs.items() if n.startswith("noise_")]
        self._steps = 0

    def _check(self, manifest: Manifest, example_shape: tuple[int, ...]) -> None:
        wanted = {f"weight_{k}": spec.shape or (1,) for k, spec in enumerate(manifest)}
        found = {n: tuple(map(int, d["shape"])) for n, d in self._inputs.items()}
        weights = {n: shape for n, shape in found.items() if n.startswith("weight_")}
        state = {n for n in found if n.startswith(("weight_", "slot_"))}
        if weights != wanted or not {f"new_{n}" for n in state} <= set(self._outputs):
            raise ClientError(
                "the server's training step is for other tensors than the plan's; refused"
            )
        if found.get("images", ())[1:] != example_shape:
            raise ClientError(
                f"the server's training step takes images {found.get('images')}, not "
                f"{example_shape}; refused"
            )

    def begin(
        self,
        weights: Sequence[Array],
        masks: Sequence[npt.NDArray[np.bool_] | None],
        learning_rate: float,
    ) -> None:
        """Start from these weights, in manifest order, with a fresh optimizer."""
        self._steps = 0
        self._rate = np.array([learning_rate], np.float32)
        for name, detail in self._inputs.items():
            kind, _, number = name.partition("_")
            if kind == "weight":
                self._set(name, weights[int(number)])
            elif kind == "slot":
                self._view(detail["index"])[...] = 0
        self._masks = {
            name: np.ones(detail["shape"], np.float32)
            if (mask := masks[int(name.removeprefix("mask_"))]) is None
            else mask.astype(np.float32)
            for name, detail in self._inputs.items()
            if name.startswith("mask_")
        }

    def run(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], noise: Any
    ) -> tuple[float, float]:
        """Make one step with at most `batch_size` examples; return mean loss and number right."""
        count = len(images)
        if self._steps:
            for before, after in self._state:
                self._view(before)[...] = self._view(after)
        self._steps += 1
        # A short batch is filled up with its first example, which then counts nothing.
        rows = np.r_[np.arange(count), np.zeros(self.batch_size - count, np.int64)]
        self._set("images", images[rows])
        self._set("labels", labels[rows])
        self._set("importance", (np.arange(self.batch_size) < count).astype(np.float32))
        self._set("learning_rate", self._rate)
        self._set("step", np.array([self._steps], np.float32))
        for name, mask in self._masks.items():
            self._set(name, mask)
        for detail in self._noises:
            values = noise.random(detail["shape"], dtype=np.float32)
            self._interpreter.set_tensor(detail["index"], values)
        self._interpreter.invoke()
        return self._number("loss"), self._number("correct")

    def weights(self) -> list[Array]:
        """Return copies of the weights after the last step."""
        return [
            np.array(self._view(self._outputs[f"new_weight_{k}"]["index"])).reshape(shape)
            for k, shape in enumerate(self._shapes)
        ]

    def _set(self, name: str, values: npt.NDArray[Any]) -> None:
        if name in self._inputs:  # a step without Adam has no use for its own number
            detail = self._inputs[name]
            self._interpreter.set_tensor(detail["index"], values.reshape(detail["shape"]))

    def _view(self, index: int) -> npt.NDArray[Any]:
        # Not kept: the interpreter does not run while a view of its memory is alive.
        view: npt.NDArray[Any] = self._interpreter.tensor(index)()
        return view

    def _number(self, name: str) -> float:
        return float(self._view(self._outputs[name]["index"])[0])


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    # The runner must be gone before the interpreter allocates: it counts who refers to it.
    runner = interpreter.get_signature_runner("train")
    return runner.get_input_details(), runner.get_output_details()
