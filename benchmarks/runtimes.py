"""Runs the example with Keras clients and with LiteRT clients: part of `make bench`.

Runs `featherfed demo` for every plan, runtime and seed, and once with both kinds of clients in one
run, and keeps each run's metrics.json, with what its clients' logs tell, under
benchmarks/results/runtimes/. Runs that are there already are not made again: after a kill it goes
on, and to measure anew, delete the file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "runtimes"

# As in methods.py: masks and ranges are compared there in the same codec.
QUANTIZE8 = ["--uplink", "quantize(8) | zstd", "--downlink", "quantize(8) | zstd"]
PLANS: dict[str, list[str]] = {
    "none": [],
    "prune": [*QUANTIZE8, "--optimize", "prune"],
    "qat": [*QUANTIZE8, "--optimize", "qat"],
}
RUNTIMES = ("litert", "keras")
SEEDS = (0, 1, 2)
_MEMORY = re.compile(r"at most (\d+) MB of memory")
_STEP = re.compile(r"^(\d+):(\d+):(\d+) INFO round (\d+): (training|sent)", re.MULTILINE)
_DAY = 24 * 3600


def measure(names: list[str]) -> None:
    """Make the runs of these names, or all of them, that have no result yet."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    every = [f"{plan}-{runtime}-seed{s}" for s in SEEDS for plan in PLANS for runtime in RUNTIMES]
    every.append("none-mixed-seed0")
    for name in names or every:
        result = RESULTS / f"{name}.json"
        if result.exists():
            continue
        print(f"{name}: running", flush=True)
        plan, runtime, seed = name.replace("seed", "").split("-")
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "run"
            command = [sys.executable, "-m", "featherfed.cli.main", "demo"]
            command += ["--dataset", "fashion-mnist", "--seed", seed, "--runtime", runtime]
            subprocess.run([*command, "--output", str(output), *PLANS[plan]], check=True)
            metrics = json.loads((output / "metrics.json").read_text("utf-8"))
            logs = [log.read_text("utf-8") for log in sorted(output.glob("client-*.log"))]
            metrics["client_memory_mb"] = [int(_MEMORY.findall(log)[-1]) for log in logs]
            metrics["client_seconds"] = [_seconds(log) for log in logs]
            result.write_text(json.dumps(metrics, indent=1), "utf-8")


def _seconds(log: str) -> list[int]:
    """Return how long the client trained and encoded in every round."""
    began: dict[str, int] = {}
    taken = []
    for hours, minutes, seconds, round_, what in _STEP.findall(log):
        now = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
        if what == "training":
            began[round_] = now
        else:
            taken.append((now - began[round_]) % _DAY)
    return taken


if __name__ == "__main__":
    measure(sys.argv[1:])
