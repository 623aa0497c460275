"""Writes a run's rounds as events that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from featherfed.api.trackers.hook import RoundFacts, Setting, score_values

DEFAULT = "runs/tensorboard"


class TensorBoardTracker:
    """Writes an event file to FOLDER/RUN; the step is the model version."""

    def __init__(self, folder: str) -> None:
        """Write under `folder`; "" is runs/tensorboard."""
        self._folder = Path(folder or DEFAULT)
        self._writer: SummaryWriter | None = None

    def start(self, run: str, settings: Mapping[str, Setting]) -> None:
        """Open a new event file, and write the settings as a table."""
        self._writer = SummaryWriter(str(self._folder / run))
        rows = [f"| {name} | {_cell(value)} |" for name, value in settings.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]), 0)
        self._writer.flush()

    def on_round(self, facts: RoundFacts) -> None:
        """Write what a round took."""
        self._write(facts.version, facts.values())

    def on_scores(self, version: int, scores: Mapping[str, float]) -> None:
        """Write loss and metrics of a version."""
        self._write(version, score_values(scores))

    def end(self, finished: bool) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        assert self._writer is not None, "it is started first"
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _cell(value: Setting) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
