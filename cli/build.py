"""Build a run's model, its evaluator and the calibration set of its int8 files."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import numpy as np

from featherfed.cli.first_weights import set_first_weights
from featherfed.compression.arrays import Array
from featherfed.datasets.dataset import Dataset
from featherfed.models.method import Optimization
from featherfed.models.model_files import load_model
from featherfed.models.optimized import FederatedModel
from featherfed.models.zoo import build
from featherfed.server.coordinator.evaluation import Evaluation
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

    Raises ModelError or ServerError if the model or its first weights cannot be read or used.
    """
    optimization = Optimization(
        settings.optimization.method, num_clusters=settings.optimization.num_clusters
    )
    shape, classes, name = test.input_shape, test.num_classes, settings.model.name
    loaded = load_model(name, lambda: build(name, shape, classes))
    model = FederatedModel(loaded.json, optimization)
    set_first_weights(model, settings.model.weights, loaded.weights)
    return model


def calibration_set(train: Dataset) -> Dataset:
    """Return at most CALIBRATION_EXAMPLES of a training set, evenly spaced, for int8's ranges.

    Test examples must not be used for this, as the int8 model is evaluated on them.
    """
    count = min(CALIBRATION_EXAMPLES, len(train))
    return train.take(np.linspace(0, len(train) - 1, count).astype(np.int64))
