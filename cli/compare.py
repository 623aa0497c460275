"""`featherfed compare`: runs side by side, as a table on the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featherfed.report.comparison import (
    ComparisonTable,
    NamedRun,
    compare_runs,
    comparison_table,
)
from featherfed.report.comparison_page import write_comparison
from featherfed.report.schema import ReportError, read_metrics


def run_compare(runs: Sequence[str], baseline: str | None, output: Path) -> None:
    """Read runs, print their comparison and write its page.

    `runs`: output folders, or files as metrics.json, each perhaps with a name: NAME=RUN.
    """
    comparison = compare_runs([read_run(text) for text in runs], baseline)
    Console().print(compare_table(table := comparison_table(comparison)))
    for note in table.notes:
        click.echo(note)
    click.echo(f"page: {write_comparison(output, comparison)}")


def read_run(text: str) -> NamedRun:
    """Return the run that an argument names. Raises ReportError."""
    name, sign, rest = text.partition("=")
    if not sign or Path(text).exists():  # a path may hold the sign itself
        name, rest = "", text
    elif not name.strip() or not rest:
        raise ReportError(f"{text!r:.120} is no run; give RUN, or NAME=RUN")
    path = Path(rest)
    return NamedRun(
        rest, read_metrics(path / "metrics.json" if path.is_dir() else path), name.strip()
    )


def compare_table(table: ComparisonTable) -> Table:
    """Return the terminal's table, a row per line, at most 80 columns wide for short names."""
    made = Table(
        title=Text(f"against {table.baseline}; bytes: payload per client and round"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=Text(f"target: {table.metric} of {table.target}"),
        caption_justify="left",
    )
    made.add_column("line", overflow="fold", min_width=10)
    columns = {
        "seeds": "n", "score": table.metric, "lost": table.lost.lower(), "up": "up",
        "down": "down", "seconds": "a round", "to_target": "bytes to\ntarget",
    }  # fmt: skip
    for heading in columns.values():
        made.add_column(Text(heading), justify="right", no_wrap=True)
    for row in table.rows:
        texts = [row[name].replace(" (", "\n(") for name in columns]  # how many runs reach it
        made.add_row(Text(row["name"]), *texts)
    return made
