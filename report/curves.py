"""Plots over rounds and bytes: quality of the global model, and of clients' own models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from featherfed.report.metric import title, value_text, word
from featherfed.report.schema import RunReport, UpdateReport
from featherfed.report.style import (
    BLUE,
    CLIENT_COLORS,
    INK,
    MUTED,
    VERMILLION,
    WIDTH,
    bytes_axis,
    round_axis,
    score_axis,
    short,
)
from featherfed.report.summary import spent

Points = Sequence[tuple[float, float]]
ClientScores = dict[int, dict[str, float]]
"""The leading metric by round and client."""
Pick = Callable[[UpdateReport], Mapping[str, float | None] | None]

_WHERE = {"server": "on test examples", "clients": "on clients' held-out examples", None: ""}


def learning_figure(run: RunReport) -> Figure | None:
    """Leading metric and loss of the global model over rounds and over bytes.

    A band shows the single clients where they measured it; ``None`` when nothing was measured.
    """
    name = run.metric.name
    scores = {key: _by_round(run, key) for key in dict.fromkeys((name, "loss"))}
    if not any(scores.values()):
        return None
    sent = {number: total for number, total in spent(run) if total > 0}
    figure = Figure(figsize=(WIDTH, 3.5 * len(scores)))
    parts = figure.subplots(len(scores), 2, sharey="row", squeeze=False)
    for (key, points), (left, right) in zip(scores.items(), parts, strict=True):
        color = BLUE if key == name else VERMILLION
        _line(left, points, color, key)
        if key == name:
            _band(left, run)
        left.set_title(f"{title(key)} {_WHERE[run.evaluated_by]}".strip())
        round_axis(left, [r.number for r in run.rounds])
        bytes_points = [(sent[number], score) for number, score in points if number in sent]
        _line(right, bytes_points, color, key)
        right.set_title(f"{title(key)} over payload per client, both ways")
        right.set_xlabel("bytes")
        bytes_axis(right, logarithmic=False)
    return figure


def _by_round(run: RunReport, name: str) -> list[tuple[int, float]]:
    known = ((r.number, r.scores.get(name)) for r in run.rounds)
    return [(number, score) for number, score in known if score is not None]


def _band(axes: Axes, run: RunReport) -> None:
    """Shade from the lowest to the highest client."""
    known = [(r.number, min(r.spread), max(r.spread)) for r in run.rounds if r.spread]
    if not known:
        return
    x, low, high = zip(*known, strict=True)
    # A band of a single round would have no width.
    axes.vlines(x, low, high, color=BLUE, alpha=0.3, linewidth=2)
    axes.fill_between(x, low, high, color=BLUE, alpha=0.12, linewidth=0, label="single clients")
    # Where the curve, and the text at its end, are not.
    axes.legend(loc="lower right" if run.metric.larger_is_better else "upper right")


def _line(axes: Axes, points: Points, color: str, name: str) -> None:
    axes.margins(y=0.18)
    score_axis(axes, name)
    if not points:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=color, linewidth=2, marker="o", markersize=5 if len(x) < 20 else 3)
    axes.annotate(
        value_text(name, y[-1]),
        (x[-1], y[-1]),
        # On the side that the curve does not come from.
        xytext=(0, 9 if y[-1] >= y[0] else -17),
        textcoords="offset points",
        ha="right" if len(x) > 1 else "center",
        color=color,
        fontweight="bold",
    )


def clients_figure(run: RunReport) -> Figure | None:
    """Each round's clients, measured by the server, as dots against the global line.

    ``None`` if no client's own model was measured there.
    """
    measured = _client_scores(run, lambda update: update.scores)
    names = _measured_names(run, measured.values())
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    _all_dots(axes, measured, names)
    line = _by_round(run, run.metric.name)
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
    axes.set_ylabel(f"{word(run.metric.name)} {_WHERE['server']}")
    score_axis(axes, run.metric.name)
    round_axis(axes, [r.number for r in run.rounds])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def own_figure(run: RunReport) -> Figure | None:
    """Clients on their own held-out examples, before and after local training, side by side.

    ``None`` if no client measured itself.
    """
    before = _client_scores(run, lambda update: update.before)
    after = _client_scores(run, lambda update: update.after)
    names = _measured_names(run, [*before.values(), *after.values()])
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, 4.2))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, measured, text in (
        (left, before, "Before local training: the global model"),
        (right, after, "After local training: each client's own model"),
    ):
        _all_dots(axes, measured, names)
        means = [(n, sum(s.values()) / len(s)) for n, s in measured.items() if s]
        if means:
            x, y = zip(*means, strict=True)
            axes.plot(x, y, color=MUTED, linewidth=1.4, label="mean of these clients", zorder=1)
        axes.set_title(text)
        score_axis(axes, run.metric.name)
        round_axis(axes, [r.number for r in run.rounds])
    left.set_ylabel(f"{word(run.metric.name)} on a client's held-out examples")
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _client_scores(run: RunReport, pick: Pick) -> ClientScores:
    return {
        r.number: {
            u.client: score for u in r.updates if (score := run.metric.of(pick(u))) is not None
        }
        for r in run.rounds
    }


def _measured_names(run: RunReport, rounds: Iterable[Mapping[str, float]]) -> list[str]:
    measured = {name for scores in rounds for name in scores}
    return [name for name in run.client_names if name in measured]


def _all_dots(axes: Axes, measured: ClientScores, names: Sequence[str]) -> None:
    """Draw the clients of each round side by side, each in its colour if they are few."""
    few = len(names) <= len(CLIENT_COLORS)
    for index, name in enumerate(names):
        aside = 0.5 * ((index + 0.5) / len(names) - 0.5)
        points = [(n + aside, scores[name]) for n, scores in measured.items() if name in scores]
        if points:
            _dots(axes, points, index, name, few)


def _dots(axes: Axes, points: Points, index: int, name: str, few: bool) -> None:
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
