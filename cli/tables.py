"""A run's tables on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from featherfed.report.table import models_table, round_table


def show_tables(directory: Path) -> None:
    """Print the rounds and the exported models of a run."""
    data = json.loads((directory / "metrics.json").read_text("utf-8"))
    console = Console()
    console.print(round_table(data))
    if "final" in data:
        console.print(models_table(data))
