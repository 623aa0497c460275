"""Export a run's training step, or load it from the user's cache."""

from __future__ import annotations

import logging

from featherfed.api.cache import Cache, cache_key
from featherfed.exporter.errors import ExportError
from featherfed.exporter.training_step import (
    VERSION,
    TrainingStepOptions,
    export_training_step,
    tf_version,
)
from featherfed.models.optimized import FederatedModel
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.settings.settings import Settings

log = logging.getLogger(__name__)


def offered_step(model: FederatedModel, settings: Settings) -> ExportedStep:
    """Return the training step for clients without TensorFlow, or why there is none.

    Either is kept in the user's cache, under a hash of everything it depends on.
    """
    options = TrainingStepOptions(settings.training.batch_size, settings.training.optimizer)
    key = cache_key(
        VERSION, tf_version(), options, model.optimization, model.task.as_dict(), model.model_json
    )
    step = _known(key)
    if step is None:
        step = _export(model, options)
        if step.content:
            Cache("step").save(key, step.content)
        else:
            Cache("verdict").save(key, step.missing.encode())
    if not step.content:
        log.warning("no LiteRT clients in this run: %s", step.missing)
    return step


def _known(key: str) -> ExportedStep | None:
    content = Cache("step").load(key)
    if content is not None:
        return ExportedStep(content)
    why = Cache("verdict").load(key)
    return None if why is None else ExportedStep(missing=why.decode())


def _export(model: FederatedModel, options: TrainingStepOptions) -> ExportedStep:
    try:
        return ExportedStep(export_training_step(model, options))
    except ExportError as error:
        return ExportedStep(missing=str(error))
