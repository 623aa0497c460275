"""The section "What a sweep costs" of docs/results.md, as sweep_overhead.py has measured it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "sweep_overhead.json"
NAMES = {
    "plain": "plain: FedAvg with `tf_keras` and numpy, as in a notebook",
    "plain25": "the same with 25 steps between two returns to Python",
    "float32": "a run of a sweep, `float32`",
    "balanced": "a run of a sweep, `balanced`",
}


def sweep_section() -> Iterator[str]:
    """Yield a table of the seconds and the processor time of a run, beside plain training."""
    measured = json.loads(RESULT.read_text("utf-8"))
    systems = measured["systems"]
    yield (
        f"{measured['dataset']}, {measured['clients']} clients, {measured['rounds']} rounds of "
        f"{measured['epochs']} epoch, batch {measured['batch']}, one thread, the CNN of 225,034 "
        f"parameters; imports left out. Medians of {len(systems['plain'])} runs in turns; ratios "
        "to the plain run of the same turn (`benchmarks/sweep_overhead.py`). Digests depend on the "
        "number of threads that TensorFlow uses for one operation. So a sweep gives each run one, "
        "and makes as many runs side by side as there are cores; `--workers` makes fewer, where "
        "memory is short. Other work on the machine takes from all alike: its load was "
        f"{measured['load_before']} before the first run."
    )
    yield ""
    yield "| system | seconds | CPU seconds | ratio of CPU seconds | ratio of seconds |"
    yield "|---|---|---|---|---|"
    for system, runs in systems.items():
        medians = [
            statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds")
        ]
        ratios = [
            [run[key] / plain[key] for run, plain in zip(runs, systems["plain"], strict=True)]
            for key in ("cpu_seconds", "seconds")
        ]
        cells = [f"{value:.1f}" for value in medians] + [
            f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios
        ]
        yield f"| {NAMES[system]} | {' | '.join(cells)} |"
