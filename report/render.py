"""Makes the self-contained report.html and model_card.md from a run's folder."""

from __future__ import annotations

from pathlib import Path

from featherfed.report import card
from featherfed.report.pictures import read_pictures
from featherfed.report.schema import ReportError, read_metrics
from featherfed.report.sections import RunPage, shell
from featherfed.report.template import write


def render(directory: Path) -> Path:
    """Write report.html and plots/*.svg into ``directory`` and return the page's path.

    Once the run has left models, model_card.md as well.

    Reads metrics.json and, of a run of pictures, pictures.npz if there is one. Raises
    `ReportError` when one of them is broken, or the folder cannot be written.
    """
    run = read_metrics(directory / "metrics.json")
    source = directory / "pictures.npz"
    pictures = read_pictures(source) if run.task.is_images and source.is_file() else None
    page = RunPage(run, pictures)
    text = shell(run.name, page.sections())
    try:
        plots = directory / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        for chart in page.charts:
            write(plots / f"{chart.key}.svg", chart.file())
        if run.final and run.final.models:
            write(directory / card.NAME, card.model_card(run))
        return write(directory / "report.html", text)
    except OSError as error:
        raise ReportError(
            f"{directory}: cannot write the report ({error}); free space or allow writing there"
        ) from error
