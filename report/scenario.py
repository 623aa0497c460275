"""Scenarios of a sweep: the rows of its tables by place in the grid, and there by codec."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from featherfed.report.schema import ReportError
from featherfed.tasks.errors import TaskError
from featherfed.tasks.metrics import is_better

Row = dict[str, Any]
"""A line of results.csv or rounds.csv (docs/metrics.md)."""

_PLACE = ("dataset", "model", "partition", "clients")
_TRAINING = ("learning_rate", "batch_size", "epochs", "optimizer")


@dataclass(frozen=True)
class CodecRuns:
    """The runs of one codec in a scenario, one per seed, and their rounds."""

    name: str
    runs: list[Row]
    rounds: list[Row]

    def mean(self, column: str) -> float:
        """Return the mean of a column over the seeds."""
        return float(statistics.mean(run[column] for run in self.runs))

    @property
    def scores(self) -> dict[int, float]:
        """The known values of the leading metric at the end, by seed."""
        return {run["seed"]: run["score"] for run in self.runs if run["score"] is not None}

    @property
    def mean_score(self) -> float | None:
        """The mean over the seeds, None if none is known."""
        return statistics.mean(self.scores.values()) if self.scores else None


@dataclass(frozen=True)
class Scenario:
    """Where codecs are compared: data set, model, split, clients, and how they train."""

    key: tuple[Any, ...]
    """The first four, and the training settings that differ between scenarios."""
    codecs: list[CodecRuns]
    varied: tuple[str, ...] = ()
    """The names of those training settings."""

    @property
    def title(self) -> str:
        """A headline."""
        dataset, model, split, clients, *training = self.key
        words = [
            f"{name.replace('_', ' ')} {'unknown' if value is None else value}"
            for name, value in zip(self.varied, training, strict=True)
        ]
        return ", ".join([dataset, model, split, f"{clients} client{'s' * (clients != 1)}", *words])

    @property
    def metric(self) -> str:
        """The name of the leading metric."""
        return str(self.codecs[0].runs[0]["metric"])

    def is_better(self, new: float, old: float) -> bool:
        """Return whether `new` is a better score than `old`; raise ReportError if unknown."""
        try:
            return is_better(self.metric, new, old)
        except TaskError as error:
            raise ReportError(f"{self.title}: {error}") from error


def group(rows: Iterable[Row], rounds: Iterable[Row]) -> list[Scenario]:
    """Return rows by scenario and codec, in the order of their first appearance."""
    rows = list(rows)
    # Tables of older versions say nothing of the training, which was the same in all their rows.
    known = {name: {row.get(name) for row in rows} - {None} for name in _TRAINING}
    varied = tuple(name for name, values in known.items() if len(values) > 1)

    def place(row: Row) -> tuple[Any, ...]:
        return (*(row[name] for name in _PLACE), *(row.get(name) for name in varied))

    scenarios: dict[tuple[Any, ...], dict[str, CodecRuns]] = {}
    for row in rows:
        codecs = scenarios.setdefault(place(row), {})
        codecs.setdefault(row["codec"], CodecRuns(row["codec"], [], [])).runs.append(row)
    for row in rounds:
        scenarios[place(row)][row["codec"]].rounds.append(row)
    return [Scenario(key, list(codecs.values()), varied) for key, codecs in scenarios.items()]
