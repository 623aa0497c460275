"""Write the files of a run's output directory; docs/metrics.md describes metrics.json."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.cli.machine import machine
from featherfed.cli.metrics_file import MetricsFile
from featherfed.compression.exchange.masks import sparsity_of
from featherfed.compression.files import replacing, write_whole
from featherfed.datasets.dataset import Dataset
from featherfed.models.export import export_each
from featherfed.models.measure import measure
from featherfed.models.optimized import FederatedModel
from featherfed.report.render import render
from featherfed.report.schema import ReportError
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store

log = logging.getLogger(__name__)

SAMPLES_PER_CLASS = 8
"""Test images of each class in pictures.npz."""


class Artifacts:
    """Writes the files of one run's output directory, each atomically.

    Models are evaluated on `test`; int8's ranges come from `calibration`, which must share no
    example with it.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        store: Store,
        coordinator: Coordinator,
        model: FederatedModel,
        test: Dataset,
        calibration: Dataset,
    ) -> None:
        self._directory = directory
        self._metrics = MetricsFile(directory / "metrics.json")
        self._settings = settings
        self._store = store
        self._coordinator = coordinator
        self._model = model
        self._test = test
        self._calibration = calibration

    def write_address(self, address: str) -> None:
        """Write and log the address that the server listens on."""
        write_whole(self._directory / "server.address", address)
        log.info("run %s: listening on %s", self._coordinator.plan.run, address)

    def write_metrics(self) -> None:
        """Write metrics.json with the newest round, and log that round."""
        newest = self._store.versions.newest_scores().version
        last = metrics.round_entry(self._store, self._settings, newest)
        log.info(
            "round %d of %d: accuracy %.4f from %d clients in %.1f s",
            newest, self._settings.rounds,
            math.nan if last["accuracy"] is None else last["accuracy"], len(last["clients"]),
            last["seconds"],
        )  # fmt: skip
        if self._metrics.num_rounds == newest - 1 > 0:
            self._metrics.append(last, metrics.tail(self._store))
        else:
            self._write_all_metrics({})

    def _write_all_metrics(self, results: dict[str, Any]) -> None:
        """Write metrics.json anew, with `results` at its end."""
        fields = {
            "featherfed": importlib.metadata.version("featherfed"),
            "num_test_examples": len(self._test),
            "input_shape": self._test.input_shape,
            "class_names": self._test.class_names,
            "machine": machine(),
        }
        self._metrics.replace(
            metrics.head(self._store, self._settings, self._model.manifest, fields),
            metrics.rounds(self._store, self._settings),
            {**metrics.tail(self._store), **results},
        )

    def finish(self) -> None:
        """Export the final model, and write metrics, pictures and the report."""
        log.info("exporting the final model")
        weights = self._coordinator.newest_weights()
        self._model.set_weights(weights)
        paths = export_each(
            self._model, self._directory, self._calibration.images, self._test.class_names
        )
        models = measure_models(paths, self._test)
        log.info("making the report")
        sparsity = sparsity_of(self._model.manifest, weights)
        final = metrics.final(self._store, self._settings, sparsity, models)
        final["num_calibration_examples"] = len(self._calibration)
        self._write_all_metrics({"final": final})
        self._write_pictures()
        log.info("report: %s", self._report())

    def _report(self) -> Path:
        try:
            return render(self._directory)
        except ReportError as error:
            if isinstance(error.__cause__, OSError):  # a full disk: the caller tries again
                raise error.__cause__ from None
            raise

    def _write_pictures(self) -> None:
        test = self._test
        by_class = [np.flatnonzero(test.labels == c) for c in range(test.num_classes)]
        count = min(SAMPLES_PER_CLASS, *(len(indices) for indices in by_class))
        updates = [u for u in self._store.journal.updates(self._settings.rounds) if u.prediction]
        updates.sort(key=lambda update: update.client)
        predictions = [json.loads(u.prediction or "") for u in updates]
        predictions.append(self._model.predict(test.images[:1])[0].tolist())
        with replacing(self._directory / "pictures.npz") as file:
            np.savez_compressed(
                file,
                samples=np.stack([test.images[indices[:count]] for indices in by_class]),
                class_names=np.array(test.class_names),
                image=test.images[0],
                image_label=test.labels[0],
                predictor_names=np.array([*(u.client for u in updates), "global"]),
                predictions=np.array(predictions, np.float32),
            )


def measure_models(paths: Iterable[Path], test: Dataset) -> list[dict[str, Any]]:
    """Return `final.models` of metrics.json: each .tflite file measured on the whole test set.

    One at a time, while `paths` makes the next one: another core than this process's measures.
    """
    if os.cpu_count() == 1:
        paths = list(paths)  # making files would slow the one down that is measured
    with (
        tempfile.TemporaryDirectory(prefix="featherfed-") as scratch,
        ThreadPoolExecutor(1) as pool,
    ):
        data = Path(scratch) / "test.npz"
        np.savez(data, images=test.images, labels=test.labels)
        rows = [pool.submit(_measured, path, data) for path in paths if path.suffix == ".tflite"]
    return [row.result() for row in rows]


def _measured(path: Path, data: Path) -> dict[str, Any]:
    log.info("measuring %s", path.name)
    content = path.read_bytes()
    return {
        "file": path.name,
        "kind": path.stem.removeprefix("model_"),
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
        **asdict(measure(path, data)),
    }
