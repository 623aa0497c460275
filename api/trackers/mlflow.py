"""Logs a run's rounds to MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before it is imported

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from featherfed.api.trackers.hook import RoundFacts, Setting, score_values

EXPERIMENT = "featherfed"
"""The experiment that all runs are in."""
RUN_TAG = "featherfed.run"
"""Holds the run's name, by which a server that starts again finds its run."""
_MAX_VALUE = 500  # characters of a parameter that every store of MLflow takes


class MlflowTracker:
    """Logs to one run of an MLflow server or folder; the step is the model version."""

    def __init__(self, uri: str) -> None:
        """`uri`: of the tracking server or folder; "" is what MLFLOW_TRACKING_URI says."""
        self._uri = uri or None
        self._client: MlflowClient | None = None
        self._run = ""

    def start(self, run: str, settings: Mapping[str, Setting]) -> None:
        """Create a run with the settings as its parameters, or go on with the one of that name."""
        client = self._client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = client.create_experiment(EXPERIMENT) if experiment is None else None
        place = number if experiment is None else experiment.experiment_id
        found = client.search_runs([place], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            return
        made = client.create_run(place, run_name=run, tags={RUN_TAG: run})
        self._run = made.info.run_id
        params = [Param(_name(key), str(value)[:_MAX_VALUE]) for key, value in settings.items()]
        client.log_batch(self._run, params=params)

    def on_round(self, facts: RoundFacts) -> None:
        """Log what a round took."""
        self._log(facts.version, facts.values())

    def on_scores(self, version: int, scores: Mapping[str, float]) -> None:
        """Log loss and metrics of a version."""
        self._log(version, score_values(scores))

    def end(self, finished: bool) -> None:
        """Say that the run has finished, or was stopped."""
        assert self._client is not None, "it is started first"
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        assert self._client is not None, "it is started first"
        now = int(1000 * time.time())
        metrics = [Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)


def _name(text: str) -> str:
    """Return a name without the characters that MLflow does not take."""
    return re.sub(r"[^\w\-. :/]", "_", text)
