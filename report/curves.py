"""Charts over rounds and bytes: quality of the global model, and of clients' own models."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from featherfed.report.chart import (
    COLORS,
    Axis,
    Band,
    Chart,
    Dots,
    Line,
    Mark,
    linear_axis,
    rounds_axis,
)
from featherfed.report.metric import title, value_text, word
from featherfed.report.schema import RunReport, UpdateReport
from featherfed.report.summary import bytes_text, number_text, short, spent
from featherfed.tasks.metrics import is_share

ClientScores = dict[int, dict[str, float]]
"""The leading metric by round and client."""
Pick = Callable[[UpdateReport], Mapping[str, float | None] | None]

_WHERE = {"server": "on test examples", "clients": "on clients' held-out examples", None: ""}
_MOST_DOTS = 600
"""More of them would make a page of megabytes, and hide each other: a band shows them."""


def learning_charts(run: RunReport) -> list[Chart]:
    """Return the leading metric and the loss of the global model, over rounds and over bytes.

    A band shows the single clients where they measured it; nothing when nothing was measured.
    """
    name = run.metric.name
    scores = {key: _by_round(run, key) for key in dict.fromkeys((name, "loss"))}
    if not any(scores.values()):
        return []
    sent = {number: total for number, total in spent(run) if total > 0}
    charts = []
    for color, (key, points) in enumerate(scores.items()):
        if not points:
            continue
        over_bytes = [(sent[int(number)], score) for number, score in points if number in sent]
        band = _band(run) if key == name else []
        y = score_axis(key, [score for _, score in points], band)
        charts.append(_over_rounds(run, key, points, band, y, color))
        if over_bytes:
            charts.append(_over_bytes(key, over_bytes, y, color))
    return charts


def _by_round(run: RunReport, name: str) -> list[tuple[float, float]]:
    known = ((r.number, r.scores.get(name)) for r in run.rounds)
    return [(number, score) for number, score in known if score is not None]


def _band(run: RunReport) -> list[tuple[float, float, float]]:
    return [(r.number, min(r.spread), max(r.spread)) for r in run.rounds if r.spread]


def score_axis(
    name: str, scores: Iterable[float], spans: Iterable[tuple[float, float, float]] = ()
) -> Axis:
    """Return an axis in a metric's unit: percent for shares, plain numbers for others."""
    values = [*scores, *(value for _, *ends in spans for value in ends)]
    text = (lambda v: f"{100 * v:.3g} %") if is_share(name) else "{:.4g}".format
    return linear_axis(values, text)


def _over_rounds(
    run: RunReport,
    name: str,
    points: list[tuple[float, float]],
    band: list[tuple[float, float, float]],
    y: Axis,
    color: int,
) -> Chart:
    marks: list[Mark] = [Band("single clients", band, color)] if band else []
    marks.append(_line(name, points, color))
    first, last = points[0], points[-1]
    return Chart(
        f"{_key(name, run)}-rounds",
        f"{title(name)} {_WHERE[run.evaluated_by]}".strip() + " over rounds",
        f"{title(name)} of the global model: {value_text(name, first[1])} after round "
        f"{first[0]:.0f}, {value_text(name, last[1])} after round {last[0]:.0f}.",
        rounds_axis([r.number for r in run.rounds]),
        y,
        marks,
    )


def _over_bytes(name: str, points: list[tuple[float, float]], y: Axis, color: int) -> Chart:
    x = linear_axis(
        [total for total, _ in points],
        lambda v: bytes_text(v).replace(".0 ", " "),
        "payload per client, both ways, in bytes",
        from_zero=True,
        most=5,
    )
    total, score = points[-1]
    return Chart(
        f"{'loss' if name == 'loss' else 'score'}-bytes",
        f"{title(name)} over bytes",
        f"{title(name)} over what a client sent and received so far: {value_text(name, score)} "
        f"after {bytes_text(total)}.",
        x,
        y,
        [_line(name, points, color)],
    )


def _key(name: str, run: RunReport) -> str:
    return "loss" if name == "loss" != run.metric.name else "score"


def _line(name: str, points: Sequence[tuple[float, float]], color: int) -> Line:
    def text(value: float) -> str:
        return value_text(name, value)

    return Line(title(name), points, color, end=text(points[-1][1]), value=text)


def clients_charts(run: RunReport) -> list[Chart]:
    """Return each round's clients, measured by the server, as dots against the global line.

    Nothing if no client's own model was measured there.
    """
    measured = _client_scores(run, lambda update: update.scores)
    names = _measured_names(run, measured.values())
    if not names:
        return []
    line = _by_round(run, run.metric.name)
    marks = _client_marks(measured, names)
    if line:
        marks.append(Line("global model after the round", line, COLORS - 1, value=_text_of(run)))
    everyone = sum(map(len, measured.values())) == sum(len(r.updates) for r in run.rounds)
    who = "Every client after its" if everyone else "Some clients after their"
    chart = Chart(
        "clients",
        f"{who} local training, and the global model after averaging",
        f"{title(run.metric.name)} {_WHERE['server']} of {len(names)} clients in "
        f"{len(run.rounds)} rounds.",
        rounds_axis([r.number for r in run.rounds]),
        score_axis(
            run.metric.name,
            [*(s for scores in measured.values() for s in scores.values()), *(s for _, s in line)],
        ),
        marks,
        height=280,
    )
    return [chart]


def own_charts(run: RunReport) -> list[Chart]:
    """Return clients on their own held-out examples, before and after local training.

    Nothing if no client measured itself.
    """
    before = _client_scores(run, lambda update: update.before)
    after = _client_scores(run, lambda update: update.after)
    names = _measured_names(run, [*before.values(), *after.values()])
    if not names:
        return []
    values = [s for part in (before, after) for scores in part.values() for s in scores.values()]
    return [
        Chart(
            f"own-{key}",
            text,
            f"{word(run.metric.name)} on clients' own held-out examples, {len(names)} clients in "
            f"{len(run.rounds)} rounds.",
            rounds_axis([r.number for r in run.rounds]),
            score_axis(run.metric.name, values),
            [*_client_marks(measured, names), *_mean(run, measured)],
            height=260,
        )
        for key, text, measured in (
            ("before", "Before local training: the global model", before),
            ("after", "After local training: each client's own model", after),
        )
    ]


def _mean(run: RunReport, measured: ClientScores) -> list[Mark]:
    means = [(float(n), statistics.fmean(s.values())) for n, s in measured.items() if s]
    if not means:
        return []
    return [Line("mean of these clients", means, COLORS - 1, dots=False, value=_text_of(run))]


def _text_of(run: RunReport) -> Callable[[float], str]:
    return lambda value: value_text(run.metric.name, value) if value else number_text(value)


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


def _client_marks(measured: ClientScores, names: Sequence[str]) -> list[Mark]:
    """Return the clients of each round side by side, each in its colour if they are few."""
    few = len(names) < COLORS
    if sum(map(len, measured.values())) > _MOST_DOTS:
        return _ranges(measured)
    marks: list[Mark] = []
    for index, name in enumerate(names):
        aside = 0.5 * ((index + 0.5) / len(names) - 0.5)
        points = [(n + aside, scores[name]) for n, scores in measured.items() if name in scores]
        label = short(name) if few else ("one client" if index == 0 else "")
        if points:
            marks.append(Dots(label, points, index if few else 0, faint=not few))
    return marks


def _ranges(measured: ClientScores) -> list[Mark]:
    """Return bands of all clients and of the middle half of them."""
    whole, half = [], []
    for number, scores in measured.items():
        if scores:
            ordered = sorted(scores.values())
            quarter = len(ordered) // 4
            whole.append((float(number), ordered[0], ordered[-1]))
            half.append((float(number), ordered[quarter], ordered[-1 - quarter]))
    return [Band("all clients", whole), Band("the middle half of them", half, 2)]
