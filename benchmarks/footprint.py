"""Disk space and start-up time of a client, with LiteRT and with Keras: part of `make bench`.

Installs each into a fresh virtual environment, as a device would, and measures its size on disk and
how long a process takes to start and import what it trains with. Writes
benchmarks/results/footprint.json. What clients take in memory is measured by runtimes.py.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from featherfed.api.machine import machine

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "footprint.json"
RUNTIMES = {
    "litert": ("edge", "import ai_edge_litert.interpreter, featherfed.edge_client.litert_trainer"),
    "keras": ("tensorflow", "import featherfed.edge_client.keras_trainer"),
}
STARTS = 5


def measure() -> None:
    """Measure both runtimes and write the result."""
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _wheel(Path(scratch))
        for runtime, (extra, imports) in RUNTIMES.items():
            rows[runtime] = _footprint(Path(scratch) / runtime, f"{wheel}[{extra}]", imports)
            print(runtime, rows[runtime], flush=True)
    RESULT.write_text(json.dumps({"machine": machine(), "runtimes": rows}, indent=1), "utf-8")


def _wheel(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(scratch), str(ROOT)], check=True)
    return next(scratch.glob("*.whl"))


def _footprint(directory: Path, requirement: str, imports: str) -> dict[str, Any]:
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
    size = subprocess.run(["du", "-sm", str(directory)], capture_output=True, text=True, check=True)
    seconds = []
    for _ in range(1 + STARTS):  # the first reads from the disk and is left out
        begin = time.perf_counter()
        subprocess.run([python, "-c", imports], check=True, capture_output=True, cwd=directory)
        seconds.append(time.perf_counter() - begin)
    return {
        "installed_mb": int(size.stdout.split()[0]),
        "import_seconds": round(statistics.median(seconds[1:]), 3),
    }


if __name__ == "__main__":
    measure()
