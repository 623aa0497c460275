"""Plots over the rounds: quality of the global model, and of clients' own models against it."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featherfed.report.schema import RunReport
from featherfed.report.style import (
    BLUE,
    CLIENT_COLORS,
    INK,
    VERMILLION,
    WIDTH,
    percent_axis,
    round_axis,
    short,
)
from featherfed.report.summary import number_text, percent_text

Points = list[tuple[int, float]]


def accuracy_figure(run: RunReport) -> Figure | None:
    """Test accuracy and loss of the global model; ``None`` when neither was measured."""
    accuracy = [(r.number, r.accuracy) for r in run.rounds if r.accuracy is not None]
    loss = [(r.number, r.loss) for r in run.rounds if r.loss is not None]
    if not accuracy and not loss:
        return None
    figure = Figure(figsize=(WIDTH, 3.7))
    left, right = figure.subplots(1, 2)
    _line(left, accuracy, BLUE, "Test accuracy of the global model", percent_text)
    percent_axis(left)
    _line(right, loss, VERMILLION, "Test loss of the global model", number_text)
    for axes in (left, right):
        round_axis(axes, [r.number for r in run.rounds])
    return figure


def _line(axes: Axes, points: Points, color: str, title: str, text: object) -> None:
    assert callable(text)
    axes.set_title(title)
    axes.margins(y=0.18)
    if not points:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=color, linewidth=2, marker="o", markersize=5 if len(x) < 20 else 3)
    axes.annotate(
        text(y[-1]),
        (x[-1], y[-1]),
        # On the side that the curve does not come from.
        xytext=(0, 9 if y[-1] >= y[0] else -17),
        textcoords="offset points",
        ha="right" if len(x) > 1 else "center",
        color=color,
        fontweight="bold",
    )


def clients_figure(run: RunReport) -> Figure | None:
    """Each round's clients as dots against the global line; ``None`` without any accuracy."""
    measured: dict[str, Points] = {}
    for r in run.rounds:
        for u in r.updates:
            if u.accuracy is not None:
                measured.setdefault(u.client, []).append((r.number, u.accuracy))
    if not measured:
        return None
    names = [name for name in run.client_names if name in measured]
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    few = len(names) <= len(CLIENT_COLORS)
    for index, name in enumerate(names):
        spread = 0.5 * ((index + 0.5) / len(names) - 0.5)
        points = [(number + spread, accuracy) for number, accuracy in measured[name]]
        _dots(axes, points, index, name, few)
    line = [(r.number, r.accuracy) for r in run.rounds if r.accuracy is not None]
    if line:
        x, y = zip(*line, strict=True)
        size = 9 if len(x) < 20 else 6
        axes.plot(
            x, y, color=INK, linewidth=1.6, marker="D", markersize=size, markerfacecolor="white",
            markeredgewidth=1.8, label="global model after the round", zorder=3,
        )  # fmt: skip
    everyone = sum(map(len, measured.values())) == sum(len(r.updates) for r in run.rounds)
    who = "Every client after its" if everyone else "Some clients after their"
    axes.set_title(f"{who} local training, and the global model after averaging")
    percent_axis(axes)
    axes.set_ylabel("test accuracy")
    round_axis(axes, [r.number for r in run.rounds])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _dots(axes: Axes, points: list[tuple[float, float]], index: int, name: str, few: bool) -> None:
    x, y = zip(*points, strict=True)
    # matplotlib leaves labels with a leading underscore out of the legend: a space saves them.
    label = " " + short(name) if name.startswith("_") else short(name)
    axes.scatter(
        x,
        y,
        s=34 if few else 16,
        color=CLIENT_COLORS[index] if few else BLUE,
        alpha=0.9 if few else 0.4,
        linewidths=0,
        label=label if few else ("one client" if index == 0 else "_"),
        zorder=2,
    )
