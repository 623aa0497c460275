"""Makes model_card.md: what a finished run delivers, for those who put it on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from featherfed.report.metric import title, value_text
from featherfed.report.schema import InputReport, InputTensor, ModelReport, ReportError, RunReport
from featherfed.report.summary import (
    NONE,
    bytes_text,
    count_text,
    discarded_text,
    latency_text,
    measured_text,
    percent_text,
    privacy_text,
    refusals_text,
    run_flows,
)
from featherfed.report.task_text import (
    answer_text,
    input_text,
    purpose,
    reading_code,
    shape_text,
    takes_bytes,
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
    quantizes = "qat" in str(settings.get("optimize", ""))
    # Older versions made int8 files of runs without data all the same.
    from_noise = run.final.num_calibration_examples == 0 and not quantizes
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
        scores=_score_lines(run),
        metric=title(run.metric.name),
        files=[
            (model, _dtypes(model.inputs), value_text(run.metric.name, run.metric.of(model.scores)))
            for model in models
        ],
        settings={key: settings.get(key, "") for key in _SETTINGS},
        machine=f"{machine['architecture']} ({machine['cores']} cores)"
        if {"architecture", "cores"} <= machine.keys()
        else "",
        purpose=purpose(run.task),
        one="image" if run.task.is_images else "example",
        inputs=[(i, shape_text(i.shape), input_text(i)) for i in run.task.inputs],
        answers=[(part.target, answer_text(part)) for part in run.task.parts],
        kinds={part.target.kind for part in run.task.parts},
        reading=Markup(reading_code(run.task)),
        quantized=list(_quantized_inputs(run)),
        clients=run.client_names,
        examples=_num_examples(run),
        runtimes=sorted({model.runtime for model in models if model.runtime}),
        by_clients=max((m.num_examples or 0 for m in models if m.evaluated_by), default=0),
        from_noise=from_noise and "int8" in {model.kind for model in models},
        in_units=any(part.target.standardize for part in run.task.parts),
        standardized=any(part.target.standardize for part in run.task.parts)
        or any(i.standardize for i in run.task.inputs),
        quantizes=quantizes,
        where=measured_text(run),
        example=_example(models, from_noise),
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


def _example(models: Sequence[ModelReport], from_noise: bool) -> str:
    """Return the file to show: the smallest, but none whose ranges come from noise."""
    kinds = {model.kind: model.file for model in reversed(models)}
    return kinds.get("dynamic" if from_noise else "int8", models[0].file)


def _num_examples(run: RunReport) -> int:
    """Return the number of examples of all clients, by the last update of each."""
    last = {update.client: update.num_examples for r in run.rounds for update in r.updates}
    return sum(last.values())


def _score_lines(run: RunReport) -> list[tuple[str, str]]:
    """Return the known metrics and the loss of the final model, the leading metric first."""
    assert run.final is not None
    names = dict.fromkeys((run.metric.name, *run.task.metrics, "loss"))
    known = [(name, run.final.scores.get(name)) for name in names]
    return [(title(n), value_text(n, score)) for n, score in known if score is not None]


def _dtypes(tensors: Sequence[InputTensor]) -> str:
    return ", ".join(tensor.dtype for tensor in tensors) or NONE


def _quantized_inputs(run: RunReport) -> Iterator[tuple[str, str, InputTensor, str, bool]]:
    """Yield file, input, tensor, and what goes into it, for each input in numbers of its own."""
    assert run.final is not None
    for model in run.final.models:
        for given, tensor in zip(run.task.inputs, model.inputs, strict=False):
            if tensor.scale:
                seen = _seen(given)
                yield model.file, given.name, tensor, seen, takes_bytes(tensor, given)


def _seen(given: InputReport) -> str:
    """Return a formula of what the model sees of a value."""
    if given.dtype == "uint8":
        return f"byte / {given.divide_by:.9g}"
    return "(value - mean) / deviation" if given.standardize else "value"
