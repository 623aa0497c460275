"""Build a run's model, evaluator and training step from its settings."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from featherfed.compression.arrays import Array
from featherfed.compression.files import write_whole
from featherfed.datasets.dataset import Dataset
from featherfed.exporter.errors import ExportError
from featherfed.exporter.training_step import (
    VERSION,
    TrainingStepOptions,
    export_training_step,
    tf_version,
)
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.models.serialization import to_json
from featherfed.models.zoo import build
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import Settings

log = logging.getLogger(__name__)


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


def offered_step(model: FederatedModel, settings: Settings) -> ExportedStep:
    """Return the training step for clients without TensorFlow, or why there is none.

    An exported step is kept in the user's cache, under a hash of everything it depends on.
    """
    options = TrainingStepOptions(
        settings.training.batch_size, settings.training.optimizer, settings.training.loss
    )
    facts = f"{VERSION} {tf_version()} {options} {model.optimization} {model.model_json}"
    folder, key = _cache() / "steps", hashlib.sha256(facts.encode()).hexdigest()[:32]
    content = _cached(folder, key)
    if content is not None:
        return ExportedStep(content)
    try:
        content = export_training_step(model, options)
    except ExportError as error:
        log.warning("no LiteRT clients in this run: %s", error)
        return ExportedStep(missing=str(error))
    try:
        _keep(folder, key, content)
    except OSError as error:
        log.warning("the training step is exported anew at every start: %s", error)
    return ExportedStep(content)


def _cached(folder: Path, key: str) -> bytes | None:
    """Return the undamaged content cached under `key`, None if there is none.

    A file's name ends in its content's digest.
    """
    for path in folder.glob(f"{key}-*.tflite"):
        content = path.read_bytes()
        if path.stem == f"{key}-{_digest(content)}":
            return content
    return None


def _keep(folder: Path, key: str, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{key}-{_digest(content)}.tflite", content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featherfed"


def _model_json(settings: Settings, test: Dataset) -> str:
    name = settings.model.name
    if not name.endswith(".json"):
        return to_json(build(name, test.input_shape, test.num_classes))
    try:
        return Path(name).read_text("utf-8")
    except OSError as error:
        raise ServerError(f"cannot read model configuration {name}: {error.strerror}") from error
