"""The plot of bytes per round and direction."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from featherfed.report.schema import RunReport
from featherfed.report.style import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILLION,
    WIDTH,
    round_axis,
)
from featherfed.report.summary import Flow, bytes_text, flow, round_flows

Series = list[tuple[int, Flow]]


def bytes_figure(run: RunReport) -> Figure | None:
    """Mean bytes per client over the rounds; ``None`` when no update was aggregated.

    Above: payload and everything sent against the float32 weights, logarithmic. Below: what came
    on top of the payload, by kind.
    """
    up, down = _series(run)
    if not up:
        return None
    figure = Figure(figsize=(WIDTH, 7.2))
    parts = figure.subplot_mosaic([["all", "all"], ["up", "down"]], height_ratios=[1.35, 1])
    final = len(down) > len(up) and bool(run.final)
    _against_float32(parts["all"], run, up, down)
    _overhead(parts["up"], up, "On top of the payload, up")
    _overhead(parts["down"], down, "On top of the payload, down")
    top = 1.3 * max((_extra(f) for _, f in (*up, *down)), default=0.0)
    rounds = [r.number for r in run.rounds]
    for name, axes in parts.items():
        round_axis(axes, rounds, final=final and name != "up")
        if name != "all":
            axes.set_ylim(0, top or 1)
    parts["down"].legend(loc="upper right", ncols=3, borderaxespad=0.2)
    return figure


def _series(run: RunReport) -> tuple[Series, Series]:
    up: Series = []
    down: Series = []
    for entry in run.rounds:
        if entry.updates:
            sent, received = round_flows([entry])
            up.append((entry.number, sent))
            down.append((entry.number, received))
    if run.final and run.final.deliveries and down:
        last = flow(d.downlink for d in run.final.deliveries)
        down.append((run.rounds[-1].number + 1, last))
    return up, down


def _against_float32(axes: Axes, run: RunReport, up: Series, down: Series) -> None:
    axes.set_yscale("log")
    axes.axhline(run.float32_bytes, color=MUTED, linestyle=(0, (6, 3)), linewidth=1.4)
    axes.annotate(
        f"float32 weights, {bytes_text(run.float32_bytes)}",
        (1, run.float32_bytes), xycoords=("axes fraction", "data"),
        xytext=(-2, 5), textcoords="offset points", ha="right", color=MUTED,
    )  # fmt: skip
    for series, color, name, marker in ((down, VERMILLION, "down", "s"), (up, BLUE, "up", "o")):
        x = [number for number, _ in series]
        style: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "markersize": 5 if len(x) < 20 else 3.5,
        }
        sent = [_positive(f.sent) for _, f in series]
        payload = [_positive(f.payload) for _, f in series]
        axes.plot(
            x, sent, linestyle=":", markerfacecolor="white", label=f"{name}, as sent", **style
        )
        axes.plot(x, payload, linewidth=2, label=f"{name}, payload", **style)
    _byte_decades(axes)
    axes.set_title("Bytes per client and round, mean over the clients (logarithmic)", pad=28)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=4, borderaxespad=0.3)


def _byte_decades(axes: Axes) -> None:
    low, high = axes.get_ylim()
    # Whole decades: a logarithmic axis with no label on it cannot be read.
    axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 0.15))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _tick(value: float, _: object) -> str:
    return bytes_text(value).replace(".0 ", " ")


def _positive(value: float | None) -> float:
    return value if value else math.nan


def _extra(part: Flow) -> float:
    return (part.total.sent - part.total.payload) / max(1, part.count)


def _overhead(axes: Axes, series: Series, title: str) -> None:
    x = [number for number, _ in series]
    floor = [0.0] * len(x)
    kinds = {
        "framing": (GREEN, [f.total.message - f.total.payload for _, f in series]),
        "control": (PURPLE, [f.total.control for _, f in series]),
        "retries": (ORANGE, [f.total.retry for _, f in series]),
    }
    for label, (color, totals) in kinds.items():
        means = [max(0, total) / f.count for total, (_, f) in zip(totals, series, strict=True)]
        axes.bar(x, means, 0.7, bottom=floor, color=color, label=label)
        floor = [low + mean for low, mean in zip(floor, means, strict=True)]
    axes.set_title(title)
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
