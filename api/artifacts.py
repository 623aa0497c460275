"""Write the files of a run's output directory; docs/metrics.md describes metrics.json."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featherfed.api.build import Served, representative
from featherfed.api.extras import explained
from featherfed.api.failures import Failures
from featherfed.api.machine import machine
from featherfed.api.metrics_file import MetricsFile
from featherfed.compression.arrays import Array
from featherfed.compression.exchange.masks import sparsity_of
from featherfed.compression.files import replacing, write_whole
from featherfed.datasets.dataset import Dataset
from featherfed.models.errors import ModelError
from featherfed.models.export import KINDS, ModelFiles, tflite_name
from featherfed.models.measure import measure
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import Scores
from featherfed.server.storage.store import Store
from featherfed.tasks.confusion import confusion
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import both_classes
from featherfed.tasks.task import Values

log = logging.getLogger(__name__)

NO_SCORES = (
    "no client has evaluated it; those that are there when the run ends do, on examples that they "
    "hold out, within [server] linger"
)
"""Why nobody knows how good the int8 file is."""
SAMPLES_PER_CLASS = 8
"""Test images of each class in pictures.npz."""


class Artifacts:
    """Writes the files of one run's output directory, each atomically."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        coordinator: Coordinator,
        served: Served,
    ) -> None:
        self._directory = directory
        self._metrics = MetricsFile(directory / "metrics.json")
        self._store = store
        self._coordinator = coordinator
        self._planned = 0
        """The number of rounds that metrics.json names."""
        self._served = served
        self._model = served.model

    @property
    def _settings(self) -> Settings:
        """The run's, whose number of rounds may change."""
        return self._coordinator.settings

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
            newest, self._coordinator.run.rounds.last, score, len(last["clients"]), last["seconds"],
        )  # fmt: skip
        if self._metrics.num_rounds == newest - 1 > 0 and self._planned == self._settings.rounds:
            before = None
            if self._settings.evaluation.evaluated_by == "clients":  # they do it a round later
                before = metrics.round_entry(store, self._settings, task, newest - 1)
            self._metrics.append(last, metrics.tail(store), before)
        else:
            self._write_all_metrics({})

    def facts(self) -> dict[str, Any]:
        """Return the entries of metrics.json that the store does not know."""
        test = self._served.test
        return {
            "featherfed": importlib.metadata.version("featherfed"),
            "num_test_examples": 0 if test is None else len(test),
            "machine": machine(),
        }

    def _write_all_metrics(self, results: dict[str, Any]) -> None:
        """Write metrics.json anew, with `results` at its end."""
        task, model = self._model.task, self._model
        self._planned = self._settings.rounds
        self._metrics.replace(
            metrics.head(self._store, self._settings, task, model.manifest, self.facts()),
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
        failures = Failures()
        models, calibrated = self._write_models(weights, failures)
        self._write_pictures_if_any(failures)
        log.info("making the report")
        sparsity = sparsity_of(self._model.manifest, weights)
        final = metrics.final(self._store, self._settings, self._model.task, sparsity, models)
        final["num_calibration_examples"] = calibrated
        with failures.noted("the confusion matrix"):
            final |= self._confusion()
        final["failed"] = list(failures.rows)
        self._write_all_metrics({"final": final})
        self._make_report(failures)
        if failures.rows != final["failed"]:
            self._write_all_metrics({"final": {**final, "failed": failures.rows}})

    def _make_report(self, failures: Failures) -> None:
        try:
            from featherfed.report.render import render
        except ModuleNotFoundError as error:  # the extra `server` alone needs no pictures
            log.warning("no report: %s", explained(error, "report"))
            return
        with failures.noted("report.html"):
            log.info("report: %s", render(self._directory))

    def _write_models(
        self, weights: Sequence[Array], failures: Failures
    ) -> tuple[list[dict[str, Any]], int]:
        """Write the files of the model with these weights, measured.

        Return `models` of metrics.json, and how many examples gave int8 its ranges.
        """
        self._model.set_weights(weights)
        scaling = self._coordinator.scaling() or Scaling.none(self._model.task)
        examples = representative(self._served, scaling)
        told = self._coordinator.model_files.measured()
        rows: list[dict[str, Any]] = []
        with failures.noted("the Keras file"):
            files = ModelFiles(self._model, self._directory, examples, scaling, told.ranges)
            log.info("the model: %s", files.write_keras())
            made = tflite_files(files, self._directory, KINDS, failures)
            rows = measure_models(made, self._served.test, failures, len(KINDS))
        if examples is not None:
            return rows, len(examples[0])
        add_clients_scores(rows, self._directory, self._coordinator.model_files.scores)
        if self._settings.evaluation.by_clients_int8:
            for row in rows:
                if row["kind"] == "int8" and not row.get("scores"):
                    with failures.noted(f"an evaluation of {row['file']}"):
                        raise ModelError(NO_SCORES)
        return rows, told.num_examples

    def _confusion(self) -> dict[str, Any]:
        """Return the final model's confusion matrix on the server's data, nothing without one."""
        test, task = self._served.test, self._model.task
        if test is None:
            return {}
        scaling = self._coordinator.scaling() or Scaling.none(task)
        found = confusion(task, scaling, self._model.predict, test.inputs, test.targets)
        return {} if found is None else {"confusion": found}

    def _write_pictures_if_any(self, failures: Failures) -> None:
        test = self._served.test
        if test is None or not self._model.task.is_images:
            return
        path = self._directory / "pictures.npz"
        with failures.noted(path.name):
            path.unlink(missing_ok=True)  # of fewer rounds
            self._write_pictures(path, test)

    def _write_pictures(self, path: Path, test: Dataset) -> None:
        last = self._store.versions.newest_scores().version
        updates = [u for u in self._store.journal.updates(last) if u.prediction]
        updates.sort(key=lambda update: update.client)
        predictions = [json.loads(u.prediction or "") for u in updates]
        predictions.append(self._model.predict([test.images[:1]])[0].tolist())
        answers = np.array(predictions, np.float32)
        with replacing(path) as file:
            np.savez_compressed(
                file,
                samples=_samples(test),
                class_names=np.array(test.class_names),
                image=test.images[0],
                image_label=test.labels[0],
                predictor_names=np.array([*(u.client for u in updates), "global"]),
                predictions=both_classes(answers) if answers.shape[1] == 1 else answers,
            )


def _samples(test: Dataset) -> Values:
    """Return a few pictures of each class, uint8 [classes, m, H, W, C]; white where it lacks some.

    m is what the rarest class has that has any.
    """
    by_class = [np.flatnonzero(test.labels == c) for c in range(test.num_classes)]
    count = min(SAMPLES_PER_CLASS, *(len(indices) for indices in by_class if len(indices)))
    samples = np.full((len(by_class), count, *test.input_shape), 255, np.uint8)
    for number, indices in enumerate(by_class):
        if len(indices):
            samples[number] = test.images[indices[:count]]
    return samples


def tflite_files(
    files: ModelFiles, folder: Path, kinds: Sequence[str], failures: Failures
) -> Iterator[Path]:
    """Yield each TFLite file once it is there; note those that cannot be made, and delete old ones.

    `folder`: that of the files.
    """
    for number, kind in enumerate(kinds, 1):
        name, path = tflite_name(kind), None
        log.info("making %s, %d of %d", name, number, len(kinds))
        with failures.noted(name):
            path = files.write_tflite(kind)
        if path is not None:
            yield path
        else:
            (folder / name).unlink(missing_ok=True)  # of another version


def measure_models(
    paths: Iterable[Path],
    test: Dataset | None,
    failures: Failures | None = None,
    most: int | None = None,
) -> list[dict[str, Any]]:
    """Return `final.models` of metrics.json: each .tflite file measured on the whole test set.

    One at a time, while `paths` makes the next one: another core than this process's measures. A
    file that cannot be measured has its size alone. Without `failures`, its ModelError is raised.
    `most`: how many there are if all can be made, for the log.
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
        rows = [
            pool.submit(_measured, path, data, failures, f"{number} of {most}" if most else "")
            for number, path in enumerate(paths, 1)
        ]
    return [row.result() for row in rows]


def add_clients_scores(
    rows: list[dict[str, Any]], folder: Path, found: Callable[[bytes], tuple[Scores, int]]
) -> None:
    """Give the row of the int8 file in `folder` the scores that clients found it to have.

    `found`: scores of a file by its content, and of how many examples; nothing if nobody told any.
    """
    for row in rows:
        if row["kind"] == "int8":
            scores, count = found((folder / row["file"]).read_bytes())
            if scores:
                row.update(scores=scores, num_examples=count, evaluated_by="clients")


def _measured(
    path: Path, data: Path | None, failures: Failures | None, place: str
) -> dict[str, Any]:
    """Return a file's row; `place`: which of the files it is, for the log."""
    log.info("measuring %s%s", path.name, f", {place}" if place else "")
    content = path.read_bytes()
    row = {
        "file": path.name,
        "kind": path.stem.removeprefix("model_"),
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
    }
    with nullcontext() if failures is None else failures.noted(f"a measurement of {path.name}"):
        row.update(asdict(measure(path, data)))
    return row
