"""Print tables of runs and sweeps on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featherfed.report.table import models_table, round_table


def show_tables(directory: Path) -> None:
    """Print the rounds and the exported models of a run."""
    data = json.loads((directory / "metrics.json").read_text("utf-8"))
    console = Console()
    console.print(round_table(data))
    if "final" in data:
        console.print(models_table(data))


def show_sweep(tables: list[tuple[str, list[dict[str, str]]]]) -> None:
    """Print one table per group of a sweep's results: codecs, bytes and accuracy."""
    for title, rows in tables:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("codec", overflow="fold", min_width=16)
        columns = {
            "seeds": "n", "up": "bytes\nup", "down": "\ndown", "accuracy": "\naccuracy",
            "lost": "points\nlost", "to_target": "bytes to\ntarget",
        }  # fmt: skip
        for name, heading in columns.items():
            table.add_column(heading, justify="right", no_wrap=name != "to_target")
        for row in rows:
            table.add_row(Text(row["codec"]), *(row[name] for name in columns))
        Console().print(table)
