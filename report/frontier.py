"""Accuracy against bytes: the page, plots and table of a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featherfed.report.schema import ReportError
from featherfed.report.style import (
    CLIENT_COLORS,
    GRID,
    INK,
    MUTED,
    WIDTH,
    bytes_axis,
    percent_axis,
    round_axis,
    save_png,
    short,
    styled,
)
from featherfed.report.summary import NONE, bytes_text, count_text, percent_text, ratio_text
from featherfed.report.template import Plot, fill, write

Row = dict[str, Any]
"""A line of results.csv or rounds.csv (docs/metrics.md)."""

_SCENARIO = ("dataset", "model", "partition", "clients")
_MARKERS = "osD^vP"


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
    def accuracies(self) -> list[float]:
        """Final accuracies, one per seed."""
        return [run["accuracy"] for run in self.runs]


@dataclass(frozen=True)
class Scenario:
    """A data set, model, split and number of clients, and every codec that was tried on it."""

    key: tuple[Any, ...]
    codecs: list[CodecRuns]

    @property
    def title(self) -> str:
        """A headline."""
        dataset, model, split, clients = self.key
        return f"{dataset}, {model}, {split}, {clients} client{'s' * (clients != 1)}"


def group(rows: Iterable[Row], rounds: Iterable[Row]) -> list[Scenario]:
    """Return rows by scenario and codec, in the order of their first appearance."""
    scenarios: dict[tuple[Any, ...], dict[str, CodecRuns]] = {}
    for row in rows:
        codecs = scenarios.setdefault(tuple(row[c] for c in _SCENARIO), {})
        codecs.setdefault(row["codec"], CodecRuns(row["codec"], [], [])).runs.append(row)
    for row in rounds:
        scenarios[tuple(row[c] for c in _SCENARIO)][row["codec"]].rounds.append(row)
    return [Scenario(key, list(codecs.values())) for key, codecs in scenarios.items()]


def table_rows(scenario: Scenario, baseline: str, target: float | None) -> list[dict[str, str]]:
    """Return a finished row of texts per codec."""
    target = _target(scenario, baseline, target)
    reference = {
        r["seed"]: r["accuracy"] for s in scenario.codecs if s.name == baseline for r in s.runs
    }
    return [_table_row(codec, reference, target) for codec in scenario.codecs]


def _table_row(
    codec: CodecRuns, reference: dict[int, float], target: float | None
) -> dict[str, str]:
    accuracies, size = codec.accuracies, codec.runs[0]["float32_bytes"]
    lost = [reference[r["seed"]] - r["accuracy"] for r in codec.runs if r["seed"] in reference]
    up, down = codec.mean("up_payload_bytes"), codec.mean("down_payload_bytes")
    reached = None if target is None else _bytes_to(codec, target)
    return {
        "codec": codec.name,
        "seeds": str(len(codec.runs)),
        "up": count_text(up),
        "up_sent": count_text(codec.mean("up_sent_bytes")),
        "up_ratio": ratio_text(size / up),
        "down": count_text(down),
        "down_sent": count_text(codec.mean("down_sent_bytes")),
        "down_ratio": ratio_text(size / down),
        "accuracy": percent_text(statistics.mean(accuracies)),
        "spread": f"{percent_text(min(accuracies))} to {percent_text(max(accuracies))}",
        "lost": _points(lost),
        "to_target": reached or NONE,
    }


def _points(lost: list[float]) -> str:
    if not lost:
        return NONE
    text = f"{100 * statistics.mean(lost):+.2f}"
    return f"{text} ± {100 * statistics.stdev(lost):.2f}" if len(lost) > 1 else text


def _target(scenario: Scenario, baseline: str, target: float | None) -> float | None:
    """Return the target, or one point less than the baseline's mean accuracy."""
    known = [statistics.mean(s.accuracies) for s in scenario.codecs if s.name == baseline]
    return target or (known[0] - 0.01 if known else None)


def _bytes_to(codec: CodecRuns, target: float) -> str:
    first: dict[int, float] = {}
    for row in codec.rounds:
        if row["accuracy"] is not None and row["accuracy"] >= target:
            first.setdefault(row["seed"], row["cumulative_bytes"])
    if not first:
        return "never"
    text = bytes_text(statistics.mean(first.values()))
    return text if len(first) == len(codec.runs) else f"{text} ({len(first)} of {len(codec.runs)})"


def render_sweep(
    directory: Path,
    name: str,
    rows: Sequence[Row],
    rounds: Sequence[Row],
    baseline: str,
    target: float | None,
) -> tuple[Path, list[tuple[str, list[dict[str, str]]]]]:
    """Write report.html and plots/*.png; return the page and the tables by scenario.

    Raises ReportError if the folder cannot be written.
    """
    scenarios = group(rows, rounds)
    tables = [(scenario.title, table_rows(scenario, baseline, target)) for scenario in scenarios]
    try:
        (directory / "plots").mkdir(parents=True, exist_ok=True)
        with styled():
            plots = [_plots(p, directory / "plots", i) for i, p in enumerate(scenarios)]
        page = write(
            directory / "report.html",
            fill(
                "sweep.html",
                name=name,
                baseline=baseline,
                scenarios=[
                    {
                        "title": scenario.title,
                        "target": percent_text(_target(scenario, baseline, target)),
                        "rows": lines,
                        "plots": pictures,
                    }
                    for scenario, (_, lines), pictures in zip(scenarios, tables, plots, strict=True)
                ],
            ),
        )
    except OSError as error:
        raise ReportError(
            f"{directory}: cannot write the report ({error}); free space or allow writing there"
        ) from error
    return page, tables


def _plots(scenario: Scenario, folder: Path, number: int) -> list[Plot]:
    return [
        Plot(
            "Frontier",
            "Up and left is better. The line joins the codecs that no other beats in both.",
            f"Accuracy against bytes up for each codec: {scenario.title}",
            save_png(frontier_figure(scenario), folder / f"frontier-{number}.png"),
        ),
        Plot(
            "Over the rounds and over the bytes",
            "Right: payload both ways until the clients hold the version.",
            f"Accuracy over rounds and over cumulative bytes: {scenario.title}",
            save_png(progress_figure(scenario), folder / f"progress-{number}.png"),
        ),
    ]


def frontier_figure(scenario: Scenario) -> Figure:
    """Return final accuracy against bytes up, and against bytes both ways."""
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(1, 2, sharey=True)
    _frontier(axes[0], scenario, "up", lambda s: s.mean("up_payload_bytes"))
    _frontier(
        axes[1],
        scenario,
        "both ways",
        lambda s: s.mean("up_payload_bytes") + s.mean("down_payload_bytes"),
    )
    axes[0].set_ylabel("final test accuracy")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8.5
    )
    return figure


def _frontier(
    axes: Axes, scenario: Scenario, title: str, cost: Callable[[CodecRuns], float]
) -> None:
    points = sorted((cost(s), statistics.mean(s.accuracies)) for s in scenario.codecs)
    best = [p for i, p in enumerate(points) if all(p[1] > q[1] for q in points[:i])]
    axes.plot(*zip(*best, strict=True), color=GRID, linewidth=5, zorder=1)
    for i, codec in enumerate(scenario.codecs):
        values, mean = codec.accuracies, statistics.mean(codec.accuracies)
        axes.errorbar(
            cost(codec), mean, yerr=[[mean - min(values)], [max(values) - mean]],
            color=_color(i), marker=_marker(i), markersize=7, capsize=3, linestyle="none",
            label=short(codec.name, 44), zorder=2,
        )  # fmt: skip
    bytes_axis(axes)
    axes.set_title(f"Payload per client and round, {title}")
    percent_axis(axes)


def progress_figure(scenario: Scenario) -> Figure:
    """Return accuracy over the rounds, and over the bytes spent so far."""
    figure = Figure(figsize=(WIDTH, 4.6))
    left, right = figure.subplots(1, 2, sharey=True)
    numbers: list[int] = []
    for i, codec in enumerate(scenario.codecs):
        measured = [row for row in codec.rounds if row["accuracy"] is not None]
        numbers = sorted({row["round"] for row in measured}) or numbers
        by_round = [[row for row in measured if row["round"] == n] for n in numbers]
        by_round = [rows for rows in by_round if rows]
        if not by_round:
            continue
        means = [statistics.mean(row["accuracy"] for row in rows) for rows in by_round]
        spent = [statistics.mean(row["cumulative_bytes"] for row in rows) for rows in by_round]
        low = [min(row["accuracy"] for row in rows) for rows in by_round]
        high = [max(row["accuracy"] for row in rows) for rows in by_round]
        for axes, x in ((left, [rows[0]["round"] for rows in by_round]), (right, spent)):
            axes.fill_between(x, low, high, color=_color(i), alpha=0.12, linewidth=0)
            axes.plot(
                x, means, color=_color(i), marker=_marker(i), markersize=4, linewidth=1.6,
                label=short(codec.name, 44),
            )  # fmt: skip
    left.set_title("Test accuracy over the rounds")
    right.set_title("Over payload per client, both ways")
    bytes_axis(right)
    percent_axis(left)
    if numbers:
        round_axis(left, numbers)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8.5
    )
    return figure


def _color(index: int) -> str:
    colors = (*CLIENT_COLORS, INK, MUTED)
    return colors[index % len(colors)]


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]
