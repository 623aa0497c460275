"""TFMOT's methods in the example, as real federations over gRPC: part of `make bench`.

Runs `featherfed demo` for every configuration and seed, and keeps each run's metrics.json under
benchmarks/results/methods/. Runs that are there already are not made again: after a kill it goes
on, and to measure anew, delete the file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "methods"

FLOAT32 = ["--uplink", "float32", "--downlink", "float32"]
QUANTIZE8 = ["--uplink", "quantize(8) | zstd", "--downlink", "quantize(8) | zstd"]
CONFIGURATIONS: dict[str, list[str]] = {
    "float32": FLOAT32,
    "quantize8": QUANTIZE8,
    "prune": [*QUANTIZE8, "--optimize", "prune"],
    "qat": [*QUANTIZE8, "--optimize", "qat"],
}
PLAN = [
    ("float32", 0), ("quantize8", 0), ("prune", 0), ("qat", 0),
    ("float32", 1), ("quantize8", 1), ("float32", 2), ("quantize8", 2),
    ("prune", 1), ("qat", 1), ("prune", 2), ("qat", 2),
]  # fmt: skip


def measure() -> None:
    """Make every run of the plan that has no result yet."""
    for name, seed in PLAN:
        keep_metrics(
            RESULTS / f"{name}-seed{seed}.json", ["--seed", str(seed), *CONFIGURATIONS[name]]
        )


def keep_metrics(result: Path, arguments: list[str]) -> None:
    """Run the demo on Fashion-MNIST with `arguments` and keep its metrics.json as `result`."""
    if result.exists():
        return
    result.parent.mkdir(parents=True, exist_ok=True)
    print(f"{result.stem}: running", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        command = [sys.executable, "-m", "featherfed.cli.main", "demo"]
        command += ["--dataset", "fashion-mnist", "--runtime", "keras", "--output", str(output)]
        subprocess.run([*command, *arguments], check=True)
        shutil.copy(output / "metrics.json", result)


if __name__ == "__main__":
    measure()
