"""`featherfed export`: the model files of any version of a run."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featherfed.api.artifacts import add_clients_scores, measure_models, tflite_files
from featherfed.api.build import Served, load_evaluation_data, representative
from featherfed.api.failures import Failures
from featherfed.api.machine import machine
from featherfed.api.stored_run import StoredRun, open_stored_run
from featherfed.compression.exchange.masks import sparsity_of
from featherfed.compression.files import write_whole
from featherfed.datasets.dataset import DatasetError
from featherfed.models.errors import ModelError
from featherfed.models.export import ModelFiles
from featherfed.models.optimized import FederatedModel
from featherfed.report.render import render
from featherfed.server.coordinator.model_files import int8_scores, merged
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import ModelVersion

log = logging.getLogger(__name__)


def export_version(
    folder: Path, version: str | None, best: bool, output: Path | None, kinds: Sequence[str]
) -> Path:
    """Write the files of a version of the run in `folder`, which may be going on.

    `version`: its number, or the first digits of its digest; None: the newest, or the `best` by
    the leading metric. `output`: None for a folder of its own in the run's. Return where the files
    are. A TFLite kind that cannot be made is logged; raises ModelError if the model itself cannot
    be had, or none of the kinds.
    """
    with open_stored_run(folder) as run:
        chosen = _choose(run, version, best)
        log.info("version %d, %s", chosen.version, _scores_text(chosen))
        model = run.model(chosen)
        target = output or folder / "versions" / str(chosen.version)
        target.mkdir(parents=True, exist_ok=True)
        if target.samefile(folder):
            raise ModelError(
                f"{target} is the run's own folder, which its server writes; give another --output"
            )
        _write(run, chosen, model, target, kinds)
        return target


def _choose(run: StoredRun, version: str | None, best: bool) -> ModelVersion:
    if version is not None:
        return run.find(version)
    return run.best(_task(run)) if best else run.newest


def _task(run: StoredRun) -> Any:
    task = run.task
    if task is None:
        raise ModelError("the run is of an older version, and does not say what it learns")
    return task


def _scores_text(version: ModelVersion) -> str:
    scores = version.scores or {}
    known = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    return known or "which nobody has evaluated"


def _write(
    run: StoredRun, version: ModelVersion, model: FederatedModel, target: Path, kinds: Sequence[str]
) -> None:
    settings, failures = run.settings, Failures()
    served = _served(model, settings)
    scaling = run.scaling(model.task)
    examples = representative(served, scaling)
    told = merged(run.store.model_files.ranges(version.version))
    files = ModelFiles(model, target, examples, scaling, told.ranges)
    log.info("the model: %s", files.write_keras())
    rows = measure_models(
        tflite_files(files, target, kinds, failures), served.test, failures, len(kinds)
    )
    if examples is None:
        held_out = HeldOutScores(model.task)
        add_clients_scores(
            rows, target, lambda file: int8_scores(run.store, held_out, version.version, file)
        )
    if settings is not None and version.version:
        with failures.noted("model_card.md"):
            fields = _metrics(run, version, model, served, settings)
            sparsity = sparsity_of(model.manifest, model.get_weights())
            final = metrics.final(
                run.store, settings, model.task, sparsity, rows, version=version.version
            )
            final["num_calibration_examples"] = (
                told.num_examples if examples is None else len(examples[0])
            )
            final["failed"] = failures.rows
            text = json.dumps({**fields, "final": final}, indent=1)
            write_whole(target / "metrics.json", text.encode())
            log.info("report: %s", render(target))
    else:
        log.warning("no model card: %s", _why_no_card(settings))
    if kinds and not rows:
        raise ModelError(f"none of the TFLite files could be made; the Keras file is in {target}")


def _why_no_card(settings: Settings | None) -> str:
    if settings is None:
        return "the run's settings are not in its database; serve it once with this version"
    return "version 0 is not trained"


def _served(model: FederatedModel, settings: Settings | None) -> Served:
    """Return the model with the data that the server evaluates on, as far as they are here."""
    if settings is None:
        return Served(model)
    try:
        test, calibration = load_evaluation_data(settings)
    except DatasetError as error:
        log.warning("no measurement of the files, and no ranges for int8: %s", error)
        return Served(model)
    if test is None or calibration is None:
        return Served(model)
    return Served(model, test.fit(model.task), calibration.fit(model.task))


def _metrics(
    run: StoredRun,
    version: ModelVersion,
    model: FederatedModel,
    served: Served,
    settings: Settings,
) -> dict[str, Any]:
    """Return metrics.json up to a version, without `final`."""
    extra = {
        "featherfed": importlib.metadata.version("featherfed"),
        "num_test_examples": 0 if served.test is None else len(served.test),
        "machine": machine(),
    }
    found = metrics.collect(run.store, settings, model.task, model.manifest, extra)
    rounds = [each for each in found["rounds"] if each["round"] <= version.version]
    return {**found, "rounds": rounds}
