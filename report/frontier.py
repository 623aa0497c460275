"""A metric against bytes: the page, plots and tables of a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featherfed.report.metric import (
    lost_text,
    lost_title,
    range_text,
    slightly_worse,
    title,
    value_text,
    word,
)
from featherfed.report.promises import PromiseTable, check, promise_table
from featherfed.report.scenario import CodecRuns, Row, Scenario, group
from featherfed.report.schema import ReportError
from featherfed.report.style import (
    CLIENT_COLORS,
    GRID,
    INK,
    MUTED,
    WIDTH,
    bytes_axis,
    round_axis,
    save_png,
    score_axis,
    styled,
)
from featherfed.report.summary import NONE, bytes_text, count_text, ratio_text, short
from featherfed.report.template import Plot, fill, write

_MARKERS = "osD^vP"


@dataclass(frozen=True)
class Comparison:
    """The finished texts of a scenario's table: a row per codec."""

    title: str
    metric: str
    """What the leading metric is called in a sentence."""
    lost: str
    """Heading of what is lost against the baseline."""
    target: str
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class SweepReport:
    """The page of a sweep, and the tables in it."""

    page: Path
    comparisons: list[Comparison]
    promises: PromiseTable


def compare(scenario: Scenario, baseline: str, target: float | None) -> Comparison:
    """Return the table of a scenario; `target` is a score, None for that of `default_target`."""
    metric = scenario.metric
    target = default_target(scenario, baseline) if target is None else target
    reference = next((c.scores for c in scenario.codecs if c.name == baseline), {})
    return Comparison(
        scenario.title,
        word(metric),
        lost_title(metric),
        value_text(metric, target),
        [_table_row(scenario, codec, reference, target) for codec in scenario.codecs],
    )


def _table_row(
    scenario: Scenario, codec: CodecRuns, reference: dict[int, float], target: float | None
) -> dict[str, str]:
    metric, scores, size = scenario.metric, codec.scores, codec.runs[0]["float32_bytes"]
    seeds = [seed for seed in scores if seed in reference]
    up, down = codec.mean("up_payload_bytes"), codec.mean("down_payload_bytes")
    return {
        "codec": codec.name,
        "seeds": str(len(codec.runs)),
        "up": count_text(up),
        "up_sent": count_text(codec.mean("up_sent_bytes")),
        "up_ratio": ratio_text(size / up),
        "down": count_text(down),
        "down_sent": count_text(codec.mean("down_sent_bytes")),
        "down_ratio": ratio_text(size / down),
        "score": value_text(metric, codec.mean_score),
        "spread": range_text(metric, list(scores.values())),
        "lost": lost_text(metric, [scores[s] for s in seeds], [reference[s] for s in seeds]),
        "to_target": NONE if target is None else _bytes_to(scenario, codec, target),
    }


def default_target(scenario: Scenario, baseline: str) -> float | None:
    """Return a score that is a little worse than the baseline's mean, None without a baseline.

    That is one point less for shares, and one percent worse for other metrics.
    """
    mean = next((c.mean_score for c in scenario.codecs if c.name == baseline), None)
    if mean is None:
        return None
    return slightly_worse(scenario.metric, scenario.is_better(1, 0), mean)


def _bytes_to(scenario: Scenario, codec: CodecRuns, target: float) -> str:
    first: dict[int, float] = {}
    for row in codec.rounds:
        score = row["score"]
        if score is not None and not scenario.is_better(target, score):
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
    promises: Mapping[str, float],
) -> SweepReport:
    """Write report.html and plots/*.png; return the page and the tables of all scenarios.

    `promises`: preset name -> points, or percent, that it loses at most against `baseline`.
    Raises ReportError if the folder cannot be written.
    """
    scenarios = group(rows, rounds)
    tables = [compare(scenario, baseline, target) for scenario in scenarios]
    promised = promise_table(check(scenarios, baseline, promises))
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
                promises=promised,
                scenarios=[
                    {"table": table, "heading": title(scenario.metric), "plots": pictures}
                    for scenario, table, pictures in zip(scenarios, tables, plots, strict=True)
                ],
            ),
        )
    except OSError as error:
        raise ReportError(
            f"{directory}: cannot write the report ({error}); free space or allow writing there"
        ) from error
    return SweepReport(page, tables, promised)


def _plots(scenario: Scenario, folder: Path, number: int) -> list[Plot]:
    name = title(scenario.metric)
    better = "Up" if scenario.is_better(1, 0) else "Down"
    return [
        Plot(
            "Frontier",
            f"{better} and left is better. The line joins the codecs that no other beats in both.",
            f"{name} against bytes up for each codec: {scenario.title}",
            save_png(frontier_figure(scenario), folder / f"frontier-{number}.png"),
        ),
        Plot(
            "Over the rounds and over the bytes",
            "Right: payload both ways until the clients hold the version.",
            f"{name} over rounds and over cumulative bytes: {scenario.title}",
            save_png(progress_figure(scenario), folder / f"progress-{number}.png"),
        ),
    ]


def frontier_figure(scenario: Scenario) -> Figure:
    """Return the final score against bytes up, and against bytes both ways."""
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(1, 2, sharey=True)
    _frontier(axes[0], scenario, "up", lambda s: s.mean("up_payload_bytes"))
    _frontier(
        axes[1],
        scenario,
        "both ways",
        lambda s: s.mean("up_payload_bytes") + s.mean("down_payload_bytes"),
    )
    axes[0].set_ylabel(f"final test {word(scenario.metric)}")
    _legend(figure, axes[0])
    return figure


def _frontier(
    axes: Axes, scenario: Scenario, heading: str, cost: Callable[[CodecRuns], float]
) -> None:
    points = sorted((cost(s), s.mean_score) for s in scenario.codecs if s.mean_score is not None)
    best = [
        p for i, p in enumerate(points) if all(scenario.is_better(p[1], q[1]) for q in points[:i])
    ]
    if best:
        axes.plot(*zip(*best, strict=True), color=GRID, linewidth=5, zorder=1)
        bytes_axis(axes)
    for i, codec in enumerate(scenario.codecs):
        values, mean = codec.scores.values(), codec.mean_score
        if mean is None:
            continue
        axes.errorbar(
            cost(codec), mean, yerr=[[mean - min(values)], [max(values) - mean]],
            color=_color(i), marker=_marker(i), markersize=7, capsize=3, linestyle="none",
            label=short(codec.name, 44), zorder=2,
        )  # fmt: skip
    axes.set_title(f"Payload per client and round, {heading}")
    score_axis(axes, scenario.metric)


def progress_figure(scenario: Scenario) -> Figure:
    """Return the score over the rounds, and over the bytes spent so far."""
    figure = Figure(figsize=(WIDTH, 4.6))
    left, right = figure.subplots(1, 2, sharey=True)
    numbers: list[int] = []
    for i, codec in enumerate(scenario.codecs):
        measured = [row for row in codec.rounds if row["score"] is not None]
        numbers = sorted({row["round"] for row in measured}) or numbers
        by_round = [[row for row in measured if row["round"] == n] for n in numbers]
        by_round = [rows for rows in by_round if rows]
        if not by_round:
            continue
        means = [statistics.mean(row["score"] for row in rows) for rows in by_round]
        spent = [statistics.mean(row["cumulative_bytes"] for row in rows) for rows in by_round]
        low = [min(row["score"] for row in rows) for rows in by_round]
        high = [max(row["score"] for row in rows) for rows in by_round]
        for axes, x in ((left, [rows[0]["round"] for rows in by_round]), (right, spent)):
            axes.fill_between(x, low, high, color=_color(i), alpha=0.12, linewidth=0)
            axes.plot(
                x, means, color=_color(i), marker=_marker(i), markersize=4, linewidth=1.6,
                label=short(codec.name, 44),
            )  # fmt: skip
    left.set_title(f"Test {word(scenario.metric)} over the rounds")
    right.set_title("Over payload per client, both ways")
    if numbers:
        bytes_axis(right)
        round_axis(left, numbers)
    score_axis(left, scenario.metric)
    _legend(figure, left)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)


def _color(index: int) -> str:
    colors = (*CLIENT_COLORS, INK, MUTED)
    return colors[index % len(colors)]


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]
