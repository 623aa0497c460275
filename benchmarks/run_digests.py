"""Prints the model's digest after every round of small real runs; a refactoring must not change it.

`python benchmarks/run_digests.py > before.json`, and the same after the change: equal files mean
equal models, bit for bit. Digests hold for one machine and one TensorFlow, so they are not in git;
`tests/test_pinned_runs.py` pins runs whose arithmetic is the same everywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli_w

CODECS = ["balanced", "topk(0.05) | quantize(4) | zstd", "exact"]
RUNS: dict[str, dict[str, Any]] = {
    "none": {"codec": CODECS, "runtime": ["keras", "litert"]},
    "prune": {"codec": CODECS[:2], "runtime": ["keras", "litert"]},
    "qat": {"codec": CODECS[:1], "runtime": ["keras", "litert"]},
    "cluster": {"codec": CODECS[:1]},
}
"""Optimisation method -> the axes of its grid."""

ROUNDS = 5


def digests(method: str, grid: dict[str, Any], scratch: Path) -> dict[str, list[str]]:
    """Return the digests by round of every run of a grid, in one worker: runs repeat exactly."""
    sweep = scratch / f"{method}.toml"
    run = {
        "rounds": ROUNDS,
        "training": {"epochs": 1, "learning_rate": 0.1},
        "optimization": {"method": method},
    }
    text = tomli_w.dumps({"name": method, "baseline": CODECS[0], "grid": grid, "run": run})
    sweep.write_text(text, "utf-8")
    output = scratch / method
    command = [sys.executable, "-m", "featherfed.cli.main", "sweep", str(sweep)]
    subprocess.run(
        [*command, "--workers", "1", "--output", str(output)], check=True, stdout=sys.stderr
    )
    found = {}
    for path in sorted((output / "cases").glob("*.json")):
        metrics = json.loads(path.read_text("utf-8"))
        label = metrics["settings"]["codec"]
        found[f"{method}: {label}"] = [round_["digest"] for round_ in metrics["rounds"]]
    return found


def main() -> None:
    """Print all digests as JSON."""
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        all_ = {}
        for method, grid in RUNS.items():
            all_.update(digests(method, grid, Path(scratch)))
    print(json.dumps(all_, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
