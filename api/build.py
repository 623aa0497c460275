"""Build a run's task and model, its evaluator and the calibration set of its int8 files."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featherfed.api.first_weights import set_first_weights
from featherfed.compression.arrays import Array
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.sources import load_train_test
from featherfed.models.method import Optimization
from featherfed.models.model_files import LoadedModel, load_model
from featherfed.models.optimized import FederatedModel
from featherfed.models.zoo import build
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import Settings
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Task, Values, image_task

CALIBRATION_EXAMPLES = 200
MAX_SHOWN = 1000
"""Most values of an answer that is shown."""


class KerasEvaluator:
    """Evaluates weights on the server's data set; the example that is shown is its first.

    `lock` must be held by every other user of `model`, which has one set of weights; besides,
    CPython 3.11 fails when two threads build syntax trees, as TensorFlow does when it traces.
    """

    def __init__(
        self, model: FederatedModel, test: Dataset, lock: threading.Lock | None = None
    ) -> None:
        self._model = model
        self._test = test
        self._lock = lock or threading.Lock()
        self.set_scaling(Scaling.none(model.task))

    def set_scaling(self, scaling: Scaling) -> None:
        """Standardise the data by `scaling` from now on."""
        self._scaling = scaling
        self._inputs = scaling.prepare(self._test.inputs)

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return scores, and the answer to the example."""
        with self._lock:
            self._model.set_weights(weights)
            scores = self._model.evaluate(self._inputs, self._test.targets, self._scaling)
            answer = self._model.predict([values[:1] for values in self._inputs])[0]
        if self._model.task.target.parts or answer.size > MAX_SHOWN:
            return Evaluation(scores)
        return Evaluation(scores, json.dumps([round(float(p), 6) for p in answer.ravel()]))


def run_task(settings: Settings, test: Dataset | None) -> Task:
    """Return what the run learns: the run file's task, or to tell the pictures of `test` apart.

    Raises ServerError if neither says it.
    """
    if settings.task is not None:
        return settings.task.made(settings.training.loss)
    if test is None:
        raise ServerError(
            "the run file says neither what is learned, [task], nor has it pictures to evaluate "
            "on, [evaluation] dataset; docs/tasks.md describes both"
        )
    return image_task(test.input_shape, test.class_names, settings.training.loss)


def build_model(
    settings: Settings, task: Task, loaded: LoadedModel | None = None
) -> FederatedModel:
    """Return the run's model for a task: the one that the settings name, unless one is `loaded`.

    Raises ModelError or ServerError if the model or its first weights cannot be read or used.
    """
    optimization = Optimization(
        settings.optimization.method, num_clusters=settings.optimization.num_clusters
    )
    name = settings.model.name
    if loaded is None:
        loaded = load_model(name, lambda: _built_in(name, task))
    model = FederatedModel(loaded.json, optimization, task)
    set_first_weights(model, settings.model.weights, loaded.weights)
    return model


@dataclass(frozen=True)
class Served:
    """A run's model, and the server's own data, if it has any.

    Models are evaluated on `test`; int8's ranges come from `calibration`, which must share no
    example with it. Both fit the model's task.
    """

    model: FederatedModel
    test: Dataset | None = None
    calibration: Dataset | None = None


def load_evaluation_data(settings: Settings) -> tuple[Dataset | None, Dataset | None]:
    """Return the server's test set, and examples for int8's ranges; None if it has no data set.

    Only the clients train: of the other examples at most CALIBRATION_EXAMPLES are kept. For a task
    of the run file the data may be anything that clients may have.
    """
    name = settings.evaluation.dataset
    if name is None:
        return None, None
    others, test = load_train_test(name, settings.explicit_task)
    return test, calibration_set(others)


def calibration_set(train: Dataset) -> Dataset:
    """Return at most CALIBRATION_EXAMPLES of a training set, evenly spaced, for int8's ranges.

    Test examples must not be used for this, as the int8 model is evaluated on them.
    """
    count = min(CALIBRATION_EXAMPLES, len(train))
    return train.take(np.linspace(0, len(train) - 1, count).astype(np.int64))


def representative(served: Served, scaling: Scaling) -> list[Values] | None:
    """Return prepared inputs of the server's for int8's ranges, None if it has no data."""
    if served.calibration is None:
        return None
    return scaling.prepare(served.calibration.inputs)


def _built_in(name: str, task: Task) -> Any:
    if not task.is_images:
        raise ServerError(
            f"the built-in model {name!r} takes pictures; name a model of your own for this task: "
            "[model] name"
        )
    height, width, channels = task.inputs[0].shape
    return build(name, (height, width, channels), len(task.target.class_names))
