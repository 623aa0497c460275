"""The section "What a round costs" of docs/results.md, as rounds.py has measured it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "round_cost.json"


def rounds_section() -> Iterator[str]:
    """Yield a table of the seconds and the processor time of a round without training."""
    measured = json.loads(RESULT.read_text("utf-8"))
    names = {
        "floor": "floor: a bare `grpc.aio` server, float32 both ways, nothing stored",
        "durable": "the floor, with each model and update on disk before it goes on",
        "flower": f"Flower (`{measured['flower']}`, `start_server`), float32",
        "balanced": "featherfed, `balanced`",
        "float32": "featherfed, `float32`",
    }
    rows = measured["systems"]
    repeats = len(next(iter(rows.values())))
    yield (
        f"A server and {measured['clients']} client processes on {measured['machine']['cores']} "
        f"cores, {measured['parameters']:,} parameters, and no training: a client adds a fixed "
        f"update to the weights. {measured['rounds']} rounds from close to close, processes' "
        f"starts and imports left out; medians of {repeats} runs in turns, and their range "
        "(`benchmarks/rounds.py`). featherfed's server and clients write everything to disk "
        "before they go on, which the floor and Flower do not. Other work on the machine takes "
        f"from all alike: its load was {measured['load_before']} before the first run."
    )
    yield ""
    yield (
        "| system | seconds a round (median) | CPU seconds a round, all processes "
        "| of it the server |"
    )
    yield "|---|---|---|---|"
    for system, runs in rows.items():
        cells = [
            _cell([run[key] for run in runs])
            for key in ("seconds", "cpu_seconds", "server_cpu_seconds")
        ]
        yield f"| {names[system]} | {' | '.join(cells)} |"


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
