"""Build a run's model, its evaluator and the calibration set of its int8 files."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.datasets.dataset import Dataset
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.models.serialization import to_json
from featherfed.models.zoo import build
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import Settings

CALIBRATION_EXAMPLES = 200


class KerasEvaluator:
    """Evaluates weights on the test set; the example image is its first.

    `lock` must be held by every other user of `model`, which has one set of weights; besides,
    CPython 3.11 fails when two threads build syntax trees, as TensorFlow does when it traces.
    """

    def __init__(
        self, model: FederatedModel, test: Dataset, lock: threading.Lock | None = None
    ) -> None:
        self._model = model
        self._test = test
        self._lock = lock or threading.Lock()

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return loss, accuracy and the example's class probabilities."""
        with self._lock:
            self._model.set_weights(weights)
            loss, accuracy = self._model.evaluate(self._test.images, self._test.labels)
            probabilities = self._model.predict(self._test.images[:1])[0]
        return Evaluation(loss, accuracy, json.dumps([round(float(p), 6) for p in probabilities]))


def build_model(settings: Settings, test: Dataset) -> FederatedModel:
    """Return the run's model for images and classes like those of `test`.

    Raises ServerError if its configuration cannot be read, ModelError if it cannot be used.
    """
    optimization = Optimization(
        settings.optimization.method, num_clusters=settings.optimization.num_clusters
    )
    return FederatedModel(_model_json(settings, test), optimization)


def calibration_set(train: Dataset) -> Dataset:
    """Return at most CALIBRATION_EXAMPLES of a training set, evenly spaced, for int8's ranges.

    Test examples must not be used for this, as the int8 model is evaluated on them.
    """
    count = min(CALIBRATION_EXAMPLES, len(train))
    return train.take(np.linspace(0, len(train) - 1, count).astype(np.int64))


def _model_json(settings: Settings, test: Dataset) -> str:
    name = settings.model.name
    if not name.endswith(".json"):
        return to_json(build(name, test.input_shape, test.num_classes))
    try:
        return Path(name).read_text("utf-8")
    except OSError as error:
        raise ServerError(f"cannot read model configuration {name}: {error.strerror}") from error
