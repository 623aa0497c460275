"""Write the files of a run's output directory; docs/metrics.md describes metrics.json."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.api.build import Served, representative
from featherfed.api.extras import explained
from featherfed.api.machine import machine
from featherfed.api.metrics_file import MetricsFile
from featherfed.compression.exchange.masks import sparsity_of
from featherfed.compression.files import replacing, write_whole
from featherfed.datasets.dataset import Dataset
from featherfed.models.errors import ModelError
from featherfed.models.export import KINDS, ModelFiles
from featherfed.models.measure import measure
from featherfed.report.schema import ReportError
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.tasks.scaling import Scaling

log = logging.getLogger(__name__)

SAMPLES_PER_CLASS = 8
"""Test images of each class in pictures.npz."""


class Artifacts:
    """Writes the files of one run's output directory, each atomically."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        store: Store,
        coordinator: Coordinator,
        served: Served,
    ) -> None:
        self._directory = directory
        self._metrics = MetricsFile(directory / "metrics.json")
        self._settings = settings
        self._store = store
        self._coordinator = coordinator
        self._served = served
        self._model = served.model

    def write_address(self, address: str) -> None:
        """Write and log the address that the server listens on."""
        write_whole(self._directory / "server.address", address)
        log.info("run %s: listening on %s", self._coordinator.plan.run, address)

    def write_metrics(self) -> None:
        """Write metrics.json with the newest round, and log that round."""
        store, task = self._store, self._model.task
        newest = store.versions.newest_scores().version
        last = metrics.round_entry(store, self._settings, task, newest)
        evaluated = store.versions.newest_evaluated()
        score = ""
        if evaluated is not None and evaluated.scores is not None and evaluated.version:
            value = evaluated.scores[task.leading]
            # Clients evaluate a version in the round after.
            of = "" if evaluated.version == newest else f" of version {evaluated.version}"
            score = f"{task.leading}{of} {value:.4f}, "
        log.info(
            "round %d of %d: %s%d clients in %.1f s",
            newest, self._settings.rounds, score, len(last["clients"]), last["seconds"],
        )  # fmt: skip
        if self._metrics.num_rounds == newest - 1 > 0:
            before = None
            if self._settings.evaluation.evaluated_by == "clients":  # they do it a round later
                before = metrics.round_entry(store, self._settings, task, newest - 1)
            self._metrics.append(last, metrics.tail(store), before)
        else:
            self._write_all_metrics({})

    def _write_all_metrics(self, results: dict[str, Any]) -> None:
        """Write metrics.json anew, with `results` at its end."""
        test = self._served.test
        fields = {
            "featherfed": importlib.metadata.version("featherfed"),
            "num_test_examples": 0 if test is None else len(test),
            "machine": machine(),
        }
        task, model = self._model.task, self._model
        self._metrics.replace(
            metrics.head(self._store, self._settings, task, model.manifest, fields),
            metrics.rounds(self._store, self._settings, task),
            {**metrics.tail(self._store), **results},
        )

    def finish(self) -> None:
        """Export the final model, and write metrics, pictures and the report.

        The weights come first. A file that cannot be made is a warning, and stands under `failed`
        in metrics.json.
        """
        log.info("exporting the final model")
        weights = self._coordinator.newest_weights()
        self._model.set_weights(weights)
        scaling = self._coordinator.scaling() or Scaling.none(self._model.task)
        examples = representative(self._served, scaling)
        files = ModelFiles(self._model, self._directory, examples, scaling)
        log.info("the model: %s", files.write_keras())
        failed: list[dict[str, str]] = []
        models = measure_models(_tflite_files(files, failed), self._served.test)
        log.info("making the report")
        sparsity = sparsity_of(self._model.manifest, weights)
        final = metrics.final(self._store, self._settings, self._model.task, sparsity, models)
        final["num_calibration_examples"] = len(examples[0]) if self._served.calibration else 0
        final["failed"] = failed
        self._write_all_metrics({"final": final})
        if self._served.test is not None and self._model.task.is_images:
            self._write_pictures(self._served.test)
        self._make_report()

    def _make_report(self) -> None:
        try:
            from featherfed.report.render import render
        except ModuleNotFoundError as error:  # the extra `server` alone needs no pictures
            log.warning("no report: %s", explained(error, "report"))
            return
        try:
            log.info("report: %s", render(self._directory))
        except ReportError as error:
            if isinstance(error.__cause__, OSError):  # a full disk: the caller tries again
                raise error.__cause__ from None
            log.warning("no report: %s", error)

    def _write_pictures(self, test: Dataset) -> None:
        names = test.class_names
        by_class = [np.flatnonzero(test.labels == c) for c in range(len(names))]
        count = min(SAMPLES_PER_CLASS, *(len(indices) for indices in by_class))
        last = self._store.versions.newest_scores().version
        updates = [u for u in self._store.journal.updates(last) if u.prediction]
        updates.sort(key=lambda update: update.client)
        predictions = [json.loads(u.prediction or "") for u in updates]
        predictions.append(self._model.predict([test.images[:1]])[0].tolist())
        with replacing(self._directory / "pictures.npz") as file:
            np.savez_compressed(
                file,
                samples=np.stack([test.images[indices[:count]] for indices in by_class]),
                class_names=np.array(names),
                image=test.images[0],
                image_label=test.labels[0],
                predictor_names=np.array([*(u.client for u in updates), "global"]),
                predictions=np.array(predictions, np.float32),
            )


def _tflite_files(files: ModelFiles, failed: list[dict[str, str]]) -> Iterator[Path]:
    """Yield each TFLite file once it is there; note in `failed` those that cannot be made."""
    for kind in KINDS:
        try:
            yield files.write_tflite(kind)
        except ModelError as error:
            log.warning("model_%s.tflite cannot be made: %s", kind, error)
            failed.append({"file": f"model_{kind}.tflite", "why": str(error)})


def measure_models(paths: Iterable[Path], test: Dataset | None) -> list[dict[str, Any]]:
    """Return `final.models` of metrics.json: each .tflite file measured on the whole test set.

    One at a time, while `paths` makes the next one: another core than this process's measures.
    """
    if os.cpu_count() == 1:
        paths = list(paths)  # making files would slow the one down that is measured
    with (
        tempfile.TemporaryDirectory(prefix="featherfed-") as scratch,
        ThreadPoolExecutor(1) as pool,
    ):
        data = None if test is None else Path(scratch) / "test.npz"
        if test is not None and data is not None:
            test.save(data)
        rows = [pool.submit(_measured, path, data) for path in paths]
    return [row.result() for row in rows]


def _measured(path: Path, data: Path | None) -> dict[str, Any]:
    log.info("measuring %s", path.name)
    content = path.read_bytes()
    return {
        "file": path.name,
        "kind": path.stem.removeprefix("model_"),
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
        **asdict(measure(path, data)),
    }
