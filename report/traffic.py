"""Charts of the bytes per round and direction."""

from __future__ import annotations

import math

from featherfed.report.chart import (
    Bars,
    Chart,
    Level,
    Line,
    decades_axis,
    linear_axis,
    rounds_axis,
)
from featherfed.report.schema import RunReport
from featherfed.report.summary import Flow, bytes_text, flow, round_flows

Series = list[tuple[int, Flow]]


def bytes_charts(run: RunReport) -> list[Chart]:
    """Return mean bytes per client over the rounds; nothing when no update was aggregated.

    First payload and everything sent against the float32 weights, logarithmic; then what came on
    top of the payload, by kind, up and down.
    """
    up, down = _series(run)
    if not up:
        return []
    final = len(down) > len(up) and bool(run.final)
    return [
        _against_float32(run, up, down, final),
        _overhead(run, up, "up", final=False),
        _overhead(run, down, "down", final),
    ]


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


def _against_float32(run: RunReport, up: Series, down: Series, final: bool) -> Chart:
    lines = []
    for series, name, color in ((down, "down", 1), (up, "up", 0)):
        sent = [(number, _positive(part.sent)) for number, part in series]
        payload = [(number, _positive(part.payload)) for number, part in series]
        lines += [
            Line(f"{name}, as sent", sent, color, dashed=True, dots=False, value=bytes_text),
            Line(f"{name}, payload", payload, color, value=bytes_text),
        ]
    weights = Level(f"float32 weights, {bytes_text(run.float32_bytes)}", run.float32_bytes)
    values = [y for line in lines for _, y in line.points]
    return Chart(
        "bytes",
        "Bytes per client and round, mean over the clients (logarithmic)",
        f"In the last round {bytes_text(up[-1][1].payload)} of payload up and "
        f"{bytes_text(down[-1][1].payload)} down, where the weights as float32 are "
        f"{bytes_text(run.float32_bytes)}.",
        rounds_axis([r.number for r in run.rounds], final),
        decades_axis([*values, run.float32_bytes], _tick),
        [weights, *lines],
        height=280,
    )


def _tick(value: float) -> str:
    return bytes_text(value).replace(".0 ", " ")


def _positive(value: float | None) -> float:
    return value if value else math.nan


def _overhead(run: RunReport, series: Series, direction: str, final: bool) -> Chart:
    kinds = {
        "framing": (2, [f.total.message - f.total.payload for _, f in series]),
        "control": (3, [f.total.control for _, f in series]),
        "retries": (4, [f.total.retry for _, f in series]),
    }
    marks = []
    floor = [0.0] * len(series)
    for label, (color, totals) in kinds.items():
        means = [max(0, total) / f.count for total, (_, f) in zip(totals, series, strict=True)]
        ends = [low + mean for low, mean in zip(floor, means, strict=True)]
        numbers = [number for number, _ in series]
        marks.append(Bars(label, list(zip(numbers, floor, ends, strict=True)), color))
        floor = ends
    return Chart(
        f"overhead-{direction}",
        f"On top of the payload, {direction}",
        f"Mean bytes of framing, control messages and retries per client and round, {direction}; "
        f"{bytes_text(floor[-1])} in the last.",
        rounds_axis([r.number for r in run.rounds], final),
        linear_axis([0.0, max(floor) or 1.0], _tick, from_zero=True, most=5),
        marks,
        height=190,
    )
