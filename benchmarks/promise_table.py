"""The section "The presets' promises" of docs/results.md, as promise.py has measured it."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_tasks_table

from featherfed.report.metric import is_share, value_text
from featherfed.report.promises import judge
from featherfed.server.rounds.uplink import PROMISES
from featherfed.tasks.metrics import metric

RESULT = Path(__file__).parent / "results" / "promise.json"
TITLES = {
    "mlp": "MLP, Fashion-MNIST, 2,000 images each",
    "mobile": "small MobileNet with batch normalisation, digits",
    "gru": "GRU over rows, digits",
    "residual": "residual network with batch normalisation, Fashion-MNIST, 2,000 images each, SGD "
    "0.05, 6 rounds of 2 epochs",
    "transformer": "transformer of two blocks, Fashion-MNIST, 1,000 images each",
    "cnn, Dirichlet 0.1": "CNN, Fashion-MNIST, 2,000 images each on average, Dirichlet(0.1)",
    "cnn, Dirichlet 0.3": "the same, Dirichlet(0.3)",
    **own_tasks_table.TITLES,
}


def promise_section() -> Iterator[str]:
    """Yield a table of what each preset lost on each pair of model and data."""
    pairs = {**json.loads(RESULT.read_text("utf-8")), **_examples()}
    promises = ", ".join(f"`{preset}` {points:g}" for preset, points in PROMISES.items())
    yield (
        "Five clients, or the examples' own. Lost against `float32` with the same "
        "seeds and the same server steps, in points of a share such as accuracy and in percent of "
        f"other metrics, mean ± standard deviation over seeds; promised are at most: {promises}. "
        "Bytes are payload up per client and round, with the round that calibrates "
        "(`benchmarks/promise.py`, which says what was chosen by looking at them; the verdicts are "
        "those of sweeps, see [metrics.md](metrics.md))."
    )
    yield ""
    yield "| model and data | metric | `float32` | " + " | ".join(f"`{p}`" for p in PROMISES) + " |"
    yield "|---|---|---" + "|---" * len(PROMISES) + "|"
    counts = Counter[str]()
    whole = [n for n, pair in pairs.items() if set(pair["runs"]) >= {"float32", *PROMISES}]
    for name in (name for name in TITLES if name in whole):
        leading, runs = pairs[name]["metric"], pairs[name]["runs"]
        base = _scores(runs["float32"], leading)
        cells = [_cell(runs[preset], base, leading, preset, counts) for preset in PROMISES]
        reference = value_text(leading, statistics.mean(base.values()))
        yield f"| {TITLES[name]} | {leading} | {reference} | {' | '.join(cells)} |"
    yield ""
    total = sum(counts.values())
    yield f"Of {total} promises: " + ", ".join(f"{n} {what}" for what, n in counts.items()) + "."


def _examples() -> dict[str, Any]:
    """Return the examples that own_tasks.py has measured, in the same form."""
    examples = json.loads(own_tasks_table.RESULT.read_text("utf-8"))["examples"]
    return {
        name: {
            "metric": found["task"]["metrics"][0],
            "runs": {
                codec: dict(enumerate(found["federated"][f"{codec} keras"]))
                for codec in ("float32", *PROMISES)
            },
        }
        for name, found in examples.items()
    }


def _scores(runs: dict[str, Any], leading: str) -> dict[str, float]:
    return {seed: run["scores"][leading] for seed, run in runs.items()}


def _cell(
    runs: dict[str, Any], base: dict[str, float], leading: str, preset: str, counts: Counter[str]
) -> str:
    """Return what a preset lost, its verdict and its bytes; count the verdict."""
    scale = 100.0 if is_share(leading) else 100 / abs(statistics.mean(base.values()))
    if not metric(leading).larger_is_better:
        scale = -scale
    scores = _scores(runs, leading)
    losses = [scale * (base[seed] - score) for seed, score in scores.items()]
    verdict = judge(losses, PROMISES[preset]) or "one seed"
    counts[str(verdict)] += 1
    spread = f" ± {statistics.stdev(losses):.2f}" if len(losses) > 1 else ""
    sent = statistics.mean(run["up"] for run in runs.values())
    return f"{statistics.mean(losses):+.2f}{spread}, {verdict}<br>{sent:,.0f} B"
