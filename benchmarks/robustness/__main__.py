"""What featherfed survives, in figures: `make robustness`, or `python benchmarks/robustness PART ...`.

Each part prints what it measured and writes it to benchmarks/results/robustness/PART.json. The long
ones go on after a kill.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "robustness"
SCRATCH = ROOT / "runs" / "robustness"
sys.path.insert(0, str(ROOT / "tests"))  # the same programs make the small tests

import fuzz  # noqa: E402

from featherfed.cli.artifacts import machine  # noqa: E402

Figures = dict[str, Any]

INPUTS, SHARE = 10_000_000, 500_000


def decoder() -> Figures:
    """Ten million inputs on everything that decodes, guided by coverage; a share at a time."""
    found = SCRATCH / "fuzz" / "found"
    found.mkdir(parents=True, exist_ok=True)
    progress = SCRATCH / "fuzz" / "progress.json"
    done: Figures = {"inputs": 0, "seconds": 0.0, "slowest_seconds": 0, "peak_mb": 0, "seed": 1}
    if progress.exists():
        done = json.loads(progress.read_text("utf-8"))
    while done["inputs"] < INPUTS:
        begin = time.monotonic()
        share = fuzz.count(min(SHARE, INPUTS - done["inputs"]), done["seed"], found)
        done["inputs"] += share["executed"]
        done["seconds"] += time.monotonic() - begin
        done["seed"] += 1
        for name in ("slowest_seconds", "peak_mb"):
            done[name] = max(done[name], share[name])
        progress.write_text(json.dumps(done), "utf-8")
        print(f"decoder: {done['inputs']:,} inputs, {done['seconds']:.0f} s", flush=True)
    progress.unlink()
    kept = len(list(found.iterdir())) + len(list(fuzz.CORPUS.iterdir()))
    return {**done, "seconds": round(done["seconds"]), "corpus": kept, "failures": 0}


PARTS: dict[str, Callable[[], Figures]] = {"decoder": decoder}


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in parser.parse_args().parts or PARTS:
        figures = PARTS[part]()
        print(json.dumps({part: figures}, indent=1), flush=True)
        text = json.dumps({"machine": machine(), **figures}, indent=1)
        (RESULTS / f"{part}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
