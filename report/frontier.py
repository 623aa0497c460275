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

_PLACE = ("dataset", "model", "partition", "clients")
_MARKERS = "osD^vP"


@dataclass(frozen=True)
class Scheme:
    """All seeds of one codec in one place."""

    codec: str
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
class Place:
    """A data set, model, split and number of clients, with every codec that was tried there."""

    key: tuple[Any, ...]
    schemes: list[Scheme]

    @property
    def title(self) -> str:
        """A headline."""
        dataset, model, split, clients = self.key
        return f"{dataset}, {model}, {split}, {clients} client{'s' * (clients != 1)}"


def group(rows: Iterable[Row], rounds: Iterable[Row]) -> list[Place]:
    """Return rows by place and codec, in the order of their first appearance."""
    places: dict[tuple[Any, ...], dict[str, Scheme]] = {}
    for row in rows:
        schemes = places.setdefault(tuple(row[c] for c in _PLACE), {})
        schemes.setdefault(row["codec"], Scheme(row["codec"], [], [])).runs.append(row)
    for row in rounds:
        places[tuple(row[c] for c in _PLACE)][row["codec"]].rounds.append(row)
    return [Place(key, list(schemes.values())) for key, schemes in places.items()]


def table_rows(place: Place, baseline: str, target: float | None) -> list[dict[str, str]]:
    """Return a finished row of texts per codec."""
    target = _target(place, baseline, target)
    reference = {
        r["seed"]: r["accuracy"] for s in place.schemes if s.codec == baseline for r in s.runs
    }
    return [_table_row(scheme, reference, target) for scheme in place.schemes]


def _table_row(scheme: Scheme, reference: dict[int, float], target: float | None) -> dict[str, str]:
    accuracies, size = scheme.accuracies, scheme.runs[0]["float32_bytes"]
    lost = [reference[r["seed"]] - r["accuracy"] for r in scheme.runs if r["seed"] in reference]
    up, down = scheme.mean("up_payload_bytes"), scheme.mean("down_payload_bytes")
    reached = None if target is None else _bytes_to(scheme, target)
    return {
        "codec": scheme.codec,
        "seeds": str(len(scheme.runs)),
        "up": count_text(up),
        "up_sent": count_text(scheme.mean("up_sent_bytes")),
        "up_ratio": ratio_text(size / up),
        "down": count_text(down),
        "down_sent": count_text(scheme.mean("down_sent_bytes")),
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


def _target(place: Place, baseline: str, target: float | None) -> float | None:
    """Return the target, or one point less than the baseline's mean accuracy."""
    known = [statistics.mean(s.accuracies) for s in place.schemes if s.codec == baseline]
    return target or (known[0] - 0.01 if known else None)


def _bytes_to(scheme: Scheme, target: float) -> str:
    first: dict[int, float] = {}
    for row in scheme.rounds:
        if row["accuracy"] is not None and row["accuracy"] >= target:
            first.setdefault(row["seed"], row["cumulative_bytes"])
    if not first:
        return "never"
    text = bytes_text(statistics.mean(first.values()))
    return (
        text if len(first) == len(scheme.runs) else f"{text} ({len(first)} of {len(scheme.runs)})"
    )


def render_sweep(
    directory: Path,
    name: str,
    rows: Sequence[Row],
    rounds: Sequence[Row],
    baseline: str,
    target: float | None,
) -> tuple[Path, list[tuple[str, list[dict[str, str]]]]]:
    """Write report.html and plots/*.png; return the page and the tables by place.

    Raises ReportError if the folder cannot be written.
    """
    places = group(rows, rounds)
    tables = [(place.title, table_rows(place, baseline, target)) for place in places]
    try:
        (directory / "plots").mkdir(parents=True, exist_ok=True)
        with styled():
            plots = [_plots(p, directory / "plots", i) for i, p in enumerate(places)]
        page = write(
            directory / "report.html",
            fill(
                "sweep.html",
                name=name,
                baseline=baseline,
                places=[
                    {
                        "title": place.title,
                        "target": percent_text(_target(place, baseline, target)),
                        "rows": lines,
                        "plots": pictures,
                    }
                    for place, (_, lines), pictures in zip(places, tables, plots, strict=True)
                ],
            ),
        )
    except OSError as error:
        raise ReportError(
            f"{directory}: cannot write the report ({error}); free space or allow writing there"
        ) from error
    return page, tables


def _plots(place: Place, folder: Path, number: int) -> list[Plot]:
    return [
        Plot(
            "Frontier",
            "Up and left is better. The line joins the codecs that no other beats in both.",
            f"Accuracy against bytes up for each codec: {place.title}",
            save_png(frontier_figure(place), folder / f"frontier-{number}.png"),
        ),
        Plot(
            "Over the rounds and over the bytes",
            "Right: payload both ways until the clients hold the version.",
            f"Accuracy over rounds and over cumulative bytes: {place.title}",
            save_png(progress_figure(place), folder / f"progress-{number}.png"),
        ),
    ]


def frontier_figure(place: Place) -> Figure:
    """Return final accuracy against bytes up, and against bytes both ways."""
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(1, 2, sharey=True)
    _frontier(axes[0], place, "up", lambda s: s.mean("up_payload_bytes"))
    _frontier(
        axes[1],
        place,
        "both ways",
        lambda s: s.mean("up_payload_bytes") + s.mean("down_payload_bytes"),
    )
    axes[0].set_ylabel("final test accuracy")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8.5
    )
    return figure


def _frontier(axes: Axes, place: Place, title: str, cost: Callable[[Scheme], float]) -> None:
    points = sorted((cost(s), statistics.mean(s.accuracies)) for s in place.schemes)
    best = [p for i, p in enumerate(points) if all(p[1] > q[1] for q in points[:i])]
    axes.plot(*zip(*best, strict=True), color=GRID, linewidth=5, zorder=1)
    for i, scheme in enumerate(place.schemes):
        values, mean = scheme.accuracies, statistics.mean(scheme.accuracies)
        axes.errorbar(
            cost(scheme), mean, yerr=[[mean - min(values)], [max(values) - mean]],
            color=_color(i), marker=_marker(i), markersize=7, capsize=3, linestyle="none",
            label=short(scheme.codec, 44), zorder=2,
        )  # fmt: skip
    bytes_axis(axes)
    axes.set_title(f"Payload per client and round, {title}")
    percent_axis(axes)


def progress_figure(place: Place) -> Figure:
    """Return accuracy over the rounds, and over the bytes spent so far."""
    figure = Figure(figsize=(WIDTH, 4.6))
    left, right = figure.subplots(1, 2, sharey=True)
    numbers: list[int] = []
    for i, scheme in enumerate(place.schemes):
        measured = [row for row in scheme.rounds if row["accuracy"] is not None]
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
                label=short(scheme.codec, 44),
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
