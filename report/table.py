"""The tables that the terminal shows after a run, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from featherfed.report.metric import value_text
from featherfed.report.schema import RoundReport, RunReport, parse_metrics
from featherfed.report.summary import (
    Flow,
    bytes_text,
    latency_text,
    number_text,
    privacy_text,
    refusals_text,
    round_flows,
    run_flows,
)

_AFTER_SCORE = (
    "loss",
    "time",
    "clients",
    "up:\npayload",
    "\nmessage",
    "down:\npayload",
    "\nmessage",
)


def round_table(metrics: Mapping[str, Any]) -> Table:
    """One row per round: quality, then mean bytes per client, up and down.

    ``metrics`` is the object of a metrics.json; raises `ReportError` when it is not valid.
    """
    run = parse_metrics(metrics)
    refused = refusals_text(run.rounds)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        caption="bytes: mean per client; message: payload and framing; "
        f"float32: {bytes_text(run.float32_bytes)}{f'; refused: {refused}' if refused else ''}",
    )
    for name in ("round", Text(run.metric.name), *_AFTER_SCORE):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in run.rounds:
        table.add_row(*_round_row(run, entry))
    if run.final:
        table.add_section()
        table.add_row(*_final_row(run))
    if privacy := privacy_text(run):
        table.caption = f"{table.caption}\n{privacy}"
    return table


def models_table(metrics: Mapping[str, Any]) -> Table:
    """One row per exported model: size raw and gzipped, leading metric, latency, peak memory.

    Files that could not be made are told below.

    ``metrics`` is the object of a metrics.json; raises `ReportError` when it is not valid.
    """
    run = parse_metrics(metrics)
    table = Table(box=box.SIMPLE_HEAD)
    # The kind is a part of the name already.
    table.add_column("model", overflow="fold", max_width=40)
    one = "one image" if run.task.is_images else "one example"
    for name in ("size", "gzip", Text(run.metric.name), one, "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in run.final.models if run.final else ():
        # Text, because a name may hold what rich reads as markup.
        table.add_row(
            Text(model.file),
            bytes_text(model.size),
            bytes_text(model.gzip_size),
            value_text(run.metric.name, run.metric.of(model.scores)),
            latency_text(model.latency_ms),
            bytes_text(model.memory),
        )
    failed = run.final.failed if run.final else ()
    if failed:
        table.caption = Text("\n".join(f"not made: {item.file}: {item.why}" for item in failed))
    return table


def _round_row(run: RunReport, entry: RoundReport) -> list[str]:
    away = entry.away
    return [
        str(entry.number),
        value_text(run.metric.name, run.metric.of(entry.scores)),
        number_text(entry.scores.get("loss")),
        _clock(entry.seconds),
        f"{len(entry.updates)}/{len(entry.updates) + away}" if away else str(len(entry.updates)),
        *_bytes(round_flows([entry])),
    ]


def _final_row(run: RunReport) -> list[str]:
    assert run.final
    return [
        "all",
        value_text(run.metric.name, run.metric.of(run.final.scores)),
        number_text(run.final.scores.get("loss")),
        _clock(run.final.seconds),
        str(len(run.client_names)),
        *_bytes(run_flows(run)),
    ]


def _bytes(flows: tuple[Flow, Flow]) -> list[str]:
    return [
        text
        for part in flows
        for text in (
            bytes_text(part.payload),
            bytes_text(part.message),
        )
    ]


def _clock(seconds: float | None) -> str:
    """Return minutes and seconds, as in 7:49, or hours and minutes, as in 3h25."""
    if seconds is None:
        return "–"
    minutes = int(seconds // 60)
    return (
        f"{minutes // 60}h{minutes % 60:02}"
        if minutes > 99
        else f"{minutes}:{int(seconds % 60):02}"
    )
