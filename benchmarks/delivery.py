"""Makes runs that deliver every kind of file from every method: part of `make bench`.

Each method is a run of `featherfed demo` whose metrics.json is kept under
benchmarks/results/delivery/. They are compared by what each kind loses against float32 and what
it costs, so by default the runs are short. Runs that are there already are not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from methods import QUANTIZE8, keep_metrics

RESULTS = Path(__file__).parent / "results" / "delivery"
METHODS = ("none", "prune", "cluster", "qat", "prune+qat")


def measure(rounds: int, epochs: int) -> None:
    """Make the run of every method that has no result yet."""
    for method in METHODS:
        keep_metrics(
            RESULTS / f"{method}.json",
            [*QUANTIZE8, "--optimize", method, "--rounds", str(rounds), "--epochs", str(epochs)],
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    measure(arguments.rounds, arguments.epochs)
