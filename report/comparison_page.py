"""The page of a comparison: its table, and curves over rounds, bytes and time as SVG inside."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from featherfed.report.comparison import (
    Line,
    Point,
    RunComparison,
    Step,
    comparison_table,
)
from featherfed.report.metric import title
from featherfed.report.schema import ReportError
from featherfed.report.style import (
    BLUE,
    CLIENT_COLORS,
    GRID,
    INK,
    MUTED,
    bytes_axis,
    score_axis,
    styled,
)
from featherfed.report.template import fill, write

_COLORS = (*CLIENT_COLORS, INK, MUTED)
_DASHES = ("solid", "dashed", "dotted", "dashdot")
"""Lines beyond the colours are told apart by these."""
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    "#98A2B3": "var(--axis)",
    BLUE: "var(--first)",  # too dark on a dark page
}
"""Colours that are the page's own, light or dark."""


@dataclass(frozen=True)
class Drawing:
    """A drawing on the page; `svg` is the element itself."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class LegendEntry:
    """A line's name and how it is drawn: a colour of CSS and a style of borders."""

    name: str
    color: str
    dash: str


def write_comparison(path: Path, comparison: RunComparison) -> Path:
    """Write the self-contained page to `path` and return it.

    Raises ReportError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(path, comparison_page(comparison))
    except OSError as error:
        raise ReportError(
            f"{path}: cannot write the page ({error}); free space, or give another file with "
            "--output"
        ) from error


def comparison_page(comparison: RunComparison) -> str:
    """Return the HTML text of a comparison."""
    return fill(
        "compare.html",
        table=comparison_table(comparison),
        unit=comparison.unit,
        legend=[
            LegendEntry(line.name, _css(_color(i)), _dash(i).replace("dashdot", "double"))
            for i, line in enumerate(comparison.lines)
        ],
        drawings=drawings(comparison),
    )


def drawings(comparison: RunComparison) -> list[Drawing]:
    """Return the leading metric over rounds, bytes and time, each if any line has it."""
    name = title(comparison.metric)
    wanted: list[tuple[str, str, Callable[[Step], float | None], Callable[[Axes], None]]] = [
        ("Over the rounds", "round", lambda step: step.round, _round_ticks),
        (
            "Over the bytes",
            "payload per client, both ways",
            lambda step: step.sent or None,
            _byte_ticks,
        ),
        ("Over the time", "", lambda step: step.seconds, _time_ticks),
    ]
    found = []
    for heading, below, of, ticks in wanted:
        curves = [line.curve(of) for line in comparison.lines]
        if not any(curves):
            continue
        with styled(), mpl.rc_context(_SVG):
            figure = _figure(comparison.metric, curves, below, ticks)
            text = svg(figure, f"{name} {heading.lower()}: {', '.join(_names(comparison.lines))}")
        found.append(Drawing(heading, below, text))
    return found


_SVG: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "featherfed",
    "font.family": "sans-serif",
    "font.size": 11,
    "legend.fontsize": 11,
}


def _names(lines: Sequence[Line]) -> list[str]:
    return [line.name for line in lines]


def _figure(
    metric: str, curves: Sequence[Sequence[Point]], below: str, ticks: Callable[[Axes], None]
) -> Figure:
    figure = Figure(figsize=(4.7, 3.5))
    axes = figure.subplots()
    for i, points in enumerate(curves):
        if points:
            _draw(axes, points, i)
    score_axis(axes, metric)
    axes.set_xlabel(below)
    ticks(axes)
    return figure


def _draw(axes: Axes, points: Sequence[Point], index: int) -> None:
    x, mean = [p.x for p in points], [p.score for p in points]
    color = _color(index)
    if all(p.deviation is not None for p in points):
        low = [p.score - (p.deviation or 0.0) for p in points]
        high = [p.score + (p.deviation or 0.0) for p in points]
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    few = len(points) < 20
    axes.plot(
        x, mean, color=color, linestyle=_dash(index), linewidth=1.8, marker="o" if few else "",
        markersize=4,
    )  # fmt: skip


def _round_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _byte_ticks(axes: Axes) -> None:
    """Count bytes, in powers of ten if the lines differ by some of these."""
    places = [float(x) for line in axes.get_lines() for x in np.asarray(line.get_xdata())]
    bytes_axis(axes, logarithmic=max(places) > 30 * min(places))


def _time_ticks(axes: Axes) -> None:
    axes.set_xlim(left=0)
    longest = axes.get_xlim()[1]
    unit, word = next(u for u in _UNITS if longest >= 2 * u[0] or u[0] == 1)
    places = MaxNLocator(5).tick_values(0, longest / unit)
    shown = [place for place in places if 0 <= place * unit <= longest]
    axes.set_xticks([place * unit for place in shown], [f"{place:g}" for place in shown])
    axes.set_xlabel(f"{word} until the round's close")


_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _dash(index: int) -> str:
    return _DASHES[index // len(_COLORS) % len(_DASHES)]


def _css(color: str) -> str:
    return _VARIABLES.get(color, color)


def svg(figure: Figure, alt: str) -> Markup:
    """Return a figure as an SVG element of a page, in the page's colours and font.

    Texts stay texts, and names in them are escaped.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(
            buffer, format="svg", transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
    # Rules for the figure alone would hold for the whole page.
    text = re.sub(
        r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL
    )
    for color, variable in _VARIABLES.items():
        text = re.sub(rf"(fill|stroke): {color}\b", rf"\1: {variable}", text, flags=re.IGNORECASE)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 inherit", text)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-label="{escape(alt)}">{rest}')
