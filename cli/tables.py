"""Print tables of runs and sweeps on the terminal."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featherfed.report.frontier import SweepReport
from featherfed.report.promises import PromiseTable
from featherfed.report.table import models_table, round_table


def show_tables(directory: Path) -> None:
    """Print the rounds and the exported models of a run."""
    data = json.loads((directory / "metrics.json").read_text("utf-8"))
    console = Console()
    console.print(round_table(data))
    if "final" in data:
        console.print(models_table(data))


def show_sweep(report: SweepReport) -> None:
    """Print one table per scenario of a sweep (codecs, bytes, leading metric), and the promises."""
    for found in report.comparisons:
        table = _sweep_table(found.title)
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
    if report.promises.rows:
        _show_promises(report.promises)


def _show_promises(promises: PromiseTable) -> None:
    """Print what each preset lost in each scenario, what it promises, and whether it kept that."""
    columns = {
        "seeds": "n", "up": "bytes\nup", "down": "\ndown", "lost": "\nlost",
        "promise": "\nat most", "verdict": "",
    }  # fmt: skip
    console = Console()
    for where, rows in itertools.groupby(promises.rows, key=lambda row: row["where"]):
        table = _sweep_table(f"Promises in {where}")
        table.add_column("preset", overflow="fold", min_width=11)
        for heading in columns.values():
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(Text(row["codec"]), *(row[name] for name in columns))
        console.print(table)
    console.print(Text(promises.summary))


def _sweep_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
