"""Export a run's training step, or load it from the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from featherfed.compression.files import write_whole
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

    An exported step is kept in the user's cache, under a hash of everything it depends on.
    """
    options = TrainingStepOptions(settings.training.batch_size, settings.training.optimizer)
    inputs = (
        f"{VERSION} {tf_version()} {options} {model.optimization} {model.task.as_dict()} "
        f"{model.model_json}"
    )
    folder, key = _cache_folder() / "steps", hashlib.sha256(inputs.encode()).hexdigest()[:32]
    content = _load(folder, key)
    if content is not None:
        return ExportedStep(content)
    try:
        content = export_training_step(model, options)
    except ExportError as error:
        log.warning("no LiteRT clients in this run: %s", error)
        return ExportedStep(missing=str(error))
    try:
        _save(folder, key, content)
    except OSError as error:
        log.warning("the training step is exported anew at every start: %s", error)
    return ExportedStep(content)


def _load(folder: Path, key: str) -> bytes | None:
    """Return the undamaged content cached under `key`, None if there is none.

    A file's name ends in its content's digest.
    """
    for path in folder.glob(f"{key}-*.step"):
        content = path.read_bytes()
        if path.stem == f"{key}-{_digest(content)}":
            return content
    return None


def _save(folder: Path, key: str, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{key}-{_digest(content)}.step", content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featherfed"
