"""The section "Attacks" of docs/results.md: what each attack did before its mend, and does now."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "attacks"


def attacks_section() -> Iterator[str]:
    """Yield a table with a row for every figure of every attack, before and after the mend."""
    yield (
        "Made by `make attacks` (`benchmarks/attacks`); the figures of before by the same attacks "
        "on the code of before the mends. A dash: this could not be measured there. Figures "
        "that are 0 on both sides are left out."
    )
    yield ""
    yield "| attack | figure | before | after |"
    yield "|---|---|---|---|"
    for path in sorted((RESULTS / "after").glob("*.json")):
        yield from _rows(path.stem, _figures("before", path.stem), _figures("after", path.stem))


def _rows(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    title = _title(name)
    for key in [*after, *(key for key in before if key not in after)]:
        if (before.get(key), after.get(key)) == (0, 0):
            continue
        yield f"| {title} | {key.replace('_', ' ')} | {_cell(before, key)} | {_cell(after, key)} |"
        title = ""


def _title(name: str) -> str:
    """Return the first sentence of an attack's docstring."""
    text = ast.get_docstring(ast.parse((HERE / "attacks" / f"{name}.py").read_text("utf-8")))
    assert text is not None, f"{name} says what it does"
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _figures(side: str, name: str) -> dict[str, Any]:
    path = RESULTS / side / f"{name}.json"
    if not path.exists():
        return {}
    figures: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return figures


def _cell(figures: dict[str, Any], key: str) -> str:
    value = figures.get(key)
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_number(count)}" for name, count in value.items())
    return _number(value).replace("|", "\\|")


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
