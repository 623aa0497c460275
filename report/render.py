"""Makes the self-contained report.html and model_card.md from a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from featherfed.report import card, page
from featherfed.report.curves import clients_figure, learning_figure, own_figure
from featherfed.report.metric import title, word
from featherfed.report.pictures import Pictures, read_pictures, samples_figure
from featherfed.report.prediction import prediction_figure
from featherfed.report.schema import ReportError, RunReport, read_metrics
from featherfed.report.style import save_png, styled
from featherfed.report.summary import discarded_text, measured_text
from featherfed.report.task_text import input_text, purpose, shape_text
from featherfed.report.template import Plot, fill, write
from featherfed.report.traffic import bytes_figure

_TEXTS = {
    "samples": (
        "The data",
        "Examples of every class.",
        "Sample images, one column per class",
    ),
    "learning": (
        "Learning",
        "The global model after every round; over the bytes that brought it to a client.",
        "Lines of the leading metric and the loss over rounds and over bytes",
    ),
    "clients": (
        "Clients and the global model",
        "A dot is one client's own model after its local training, measured on the server's test"
        " examples; averaging makes the line.",
        "Dots of the clients' scores per round and the line of the global model",
    ),
    "own": (
        "Clients on their own examples",
        "A dot is one client, measured by itself on examples that it did not train with: left the"
        " model that the round began with, right what its local training made of it.",
        "Dots of the clients' scores per round, before and after local training",
    ),
    "prediction": (
        "One image, every model",
        "What clients and the global model take the image for. In bars, green is the true"
        " class, orange a wrong first choice.",
        "Class probabilities of one test image for the clients and the global model",
    ),
    "bytes": (
        "Bytes on the link",
        "Payload is the compressed update alone; as sent adds framing, control messages and"
        " retries. Down in a round is what brought the client to the version it started from.",
        "Bytes per client and round up and down, payload and as sent, against float32",
    ),
}


def render(directory: Path) -> Path:
    """Write report.html and plots/*.png into ``directory`` and return the page's path.

    Once the run has left models, model_card.md as well.

    Reads metrics.json and, of a run of pictures, pictures.npz if there is one. Raises
    `ReportError` when one of them is broken, or the folder cannot be written.
    """
    run = read_metrics(directory / "metrics.json")
    source = directory / "pictures.npz"
    pictures = read_pictures(source) if run.task.is_images and source.is_file() else None
    try:
        plots = _draw(run, pictures, directory / "plots")
        if run.final and run.final.models:
            write(directory / card.NAME, card.model_card(run))
        return write(directory / "report.html", _fill(run, plots))
    except OSError as error:
        raise ReportError(
            f"{directory}: cannot write the report ({error}); free space or allow writing there"
        ) from error


def _figures(run: RunReport, pictures: Pictures | None) -> Iterator[tuple[str, Figure | None]]:
    if pictures:
        yield "samples", samples_figure(pictures)
    if run.rounds:
        yield "learning", learning_figure(run)
        yield "clients", clients_figure(run)
        yield "own", own_figure(run)
    if pictures:
        yield "prediction", prediction_figure(pictures)
    if run.rounds:
        yield "bytes", bytes_figure(run)


def _draw(run: RunReport, pictures: Pictures | None, folder: Path) -> list[Plot]:
    folder.mkdir(parents=True, exist_ok=True)
    plots = []
    with styled():
        for name, figure in _figures(run, pictures):
            if figure is not None:
                uri = save_png(figure, folder / f"{name}.png")
                plots.append(Plot(*_TEXTS[name], uri))
    return plots


def _fill(run: RunReport, plots: list[Plot]) -> str:
    return fill(
        "run.html",
        run=run,
        plots=plots,
        tiles=page.tiles(run),
        metric=title(run.metric.name),
        word=word(run.metric.name),
        rounds=page.round_rows(run),
        measured=measured_text(run),
        purpose=purpose(run.task),
        inputs=[(i, shape_text(i.shape), input_text(i)) for i in run.task.inputs],
        spread=any(entry.spread for entry in run.rounds),
        scores=page.score_table(run),
        own=page.own_rows(run),
        final=page.final_row(run),
        clients=page.client_rows(run),
        totals=page.totals_text(run),
        models=page.model_rows(run),
        failed=run.final.failed if run.final else (),
        one="image" if run.task.is_images else "example",
        refusals=page.refusal_rows(run),
        privacy=page.privacy_note(run),
        discarded=discarded_text(run.rounds),
        noise=page.noise_note(run),
    )
