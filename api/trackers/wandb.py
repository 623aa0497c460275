"""Logs a run's rounds to Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from featherfed.api.trackers.hook import RoundFacts, Setting, score_values

PROJECT = "featherfed"
_STEP = "version"


class WandbTracker:
    """Logs to one run of a project, drawn by model version; WANDB_MODE=offline keeps it here."""

    def __init__(self, project: str) -> None:
        """`project`: its name; "" is featherfed."""
        self._project = project or PROJECT
        self._run: Any = None

    def start(self, run: str, settings: Mapping[str, Setting]) -> None:
        """Create a run that has the settings, or go on with the one of that name."""
        self._run = wandb.init(
            project=self._project, id=run, name=run, resume="allow", config=dict(settings)
        )
        # Scores of a version may come after those of the next round, so steps cannot be counted.
        self._run.define_metric("*", step_metric=_STEP)

    def on_round(self, facts: RoundFacts) -> None:
        """Log what a round took."""
        self._run.log({_STEP: facts.version, **facts.values()})

    def on_scores(self, version: int, scores: Mapping[str, float]) -> None:
        """Log loss and metrics of a version."""
        self._run.log({_STEP: version, **score_values(scores)})

    def end(self, finished: bool) -> None:
        """Send what is left, and say whether the run has finished."""
        self._run.finish(exit_code=0 if finished else 1)
