"""Print tables of runs and sweeps on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featherfed.report.frontier import Comparison
from featherfed.report.table import models_table, round_table


def show_tables(directory: Path) -> None:
    """Print the rounds and the exported models of a run."""
    data = json.loads((directory / "metrics.json").read_text("utf-8"))
    console = Console()
    console.print(round_table(data))
    if "final" in data:
        console.print(models_table(data))


def show_sweep(comparisons: Sequence[Comparison]) -> None:
    """Print one table per scenario of a sweep: codecs, bytes and the leading metric."""
    for found in comparisons:
        table = Table(
            title=found.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("codec", overflow="fold", min_width=14)
        columns = {
            "seeds": "n", "up": "bytes\nup", "down": "\ndown", "score": f"\n{found.metric}",
            "lost": "\n".join(found.lost.lower().rsplit(" ", 1)), "to_target": "bytes to\ntarget",
        }  # fmt: skip
        for name, heading in columns.items():
            # The last column may break into two lines, at its blanks.
            last = name == "to_target"
            table.add_column(
                heading, justify="right", no_wrap=not last, min_width=9 if last else None
            )
        for row in found.rows:
            table.add_row(Text(row["codec"]), *(row[name] for name in columns))
        Console().print(table)
