"""Makes model_card.md: what a finished run delivers, for those who put it on a device."""

from __future__ import annotations

import math

from featherfed.report.schema import ModelReport, ReportError, RunReport
from featherfed.report.summary import (
    NONE,
    bytes_text,
    count_text,
    discarded_text,
    latency_text,
    percent_text,
    privacy_text,
    refusals_text,
    run_flows,
)
from featherfed.report.template import fill_markdown

NAME = "model_card.md"
"""The card's file, beside metrics.json."""


def model_card(run: RunReport) -> str:
    """Return the card of a finished run as Markdown; names in it cannot become markup.

    Raises ReportError if the run has not finished, or exported no model.
    """
    if run.final is None or not run.final.models:
        raise ReportError("no models to describe; the card is made when the run has finished")
    settings = dict(run.settings)
    machine = dict(run.machine)
    models = run.final.models
    up, down = run_flows(run)
    return fill_markdown(
        "card.md",
        {
            "count": count_text,
            "bytes": bytes_text,
            "percent": percent_text,
            "latency": latency_text,
        },
        run=run,
        final=run.final,
        settings={key: settings.get(key, "") for key in _SETTINGS},
        machine=f"{machine['architecture']} ({machine['cores']} cores)"
        if {"architecture", "cores"} <= machine.keys()
        else "",
        classes=run.class_names,
        clients=run.client_names,
        examples=_num_examples(run),
        runtimes=sorted({model.runtime for model in models if model.runtime}),
        takes_bytes=[model.file for model in models if _takes_bytes(model)],
        quantizes="qat" in settings.get("optimize", ""),
        # The smallest file that a device can take a camera's bytes to.
        example=next((m.file for m in models if m.kind == "int8"), models[0].file),
        none_text=NONE,
        privacy=privacy_text(run),
        refused=refusals_text(run.rounds),
        discarded=discarded_text(run.rounds),
        up=up,
        down=down,
    )


_SETTINGS = (
    "model", "epochs", "batch_size", "optimizer", "learning_rate", "optimize", "uplink", "downlink"
)  # fmt: skip


def _num_examples(run: RunReport) -> int:
    """Return the number of examples of all clients, by the last update of each."""
    last = {update.client: update.num_examples for r in run.rounds for update in r.updates}
    return sum(last.values())


def _takes_bytes(model: ModelReport) -> bool:
    tensor = model.input
    return (
        tensor is not None
        and tensor.zero_point == 0
        and tensor.scale is not None
        and math.isclose(tensor.scale, 1 / 255, rel_tol=1e-5)
    )
