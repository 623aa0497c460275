"""The section "Tasks of all kinds" of docs/results.md, as own_tasks.py has measured it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "own_tasks.json"
PERCENT = ("accuracy", "auc", "f1")
TITLES = {
    "watch": "activity from a watch, 4 classes",
    "gait": "virtual sensor, 3 values",
    "forecast": "temperature, 6 hours ahead",
    "anomaly": "autoencoder of movements",
    "text": "next character, a client a book",
    "diabetes": "table, regression",
    "cancer": "table, 2 classes",
    "transfer": "frozen backbone, 5 classes",
}
COLUMNS = ("float32 keras", "balanced keras", "extreme keras", "balanced litert")


def own_tasks_section() -> Iterator[str]:
    """Yield a table of every example: pooled, alone, and federated by codec."""
    examples = json.loads(RESULT.read_text("utf-8"))["examples"]
    seeds = len(next(iter(examples.values()))["pooled"])
    yield (
        "The folders of [examples/](../examples/README.md): the score on test data that no client "
        "has, of the same model trained on all clients' data together (pooled), by one client "
        f"alone (mean of the clients), and federated; means over {seeds} seeds, all with as many "
        "epochs. Bytes are payload per client and round, up / down, with the first model; those "
        "of LiteRT clients are those of Keras clients (`benchmarks/own_tasks.py`)."
    )
    yield ""
    yield (
        "| example | metric | pooled | alone | `float32` | `balanced` | `extreme` "
        "| `balanced`, LiteRT |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name in (name for name in TITLES if name in examples):
        found = examples[name]
        metric = found["task"]["metrics"][0]
        cells = [_score(found[kind], metric) for kind in ("pooled", "alone")]
        for column in COLUMNS:
            runs = found["federated"][column]
            score = _score([run["scores"] for run in runs], metric)
            sent = "" if column.endswith("litert") else f"<br>{_bytes(runs)}"
            cells.append(score + sent)
        yield f"| [{name}](../examples/{_folder(name)}): {TITLES[name]} | {metric} | " + (
            " | ".join(cells) + " |"
        )


def _folder(name: str) -> str:
    return "tables" if name in ("diabetes", "cancer") else name


def _score(scores: Sequence[Any], metric: str) -> str:
    value = statistics.mean(score[metric] for score in scores)
    return f"{100 * value:.1f} %" if metric in PERCENT else f"{value:.4g}"


def _bytes(runs: Sequence[Any]) -> str:
    up, down = (statistics.mean(run[side] for run in runs) for side in ("up", "down"))
    return f"{up:,.0f} / {down:,.0f} B"
