"""What coarse weights of forwarded updates cost: digits on skewed shards, with and without them.

Eleven clients, ten rounds, forwarded sketches. Writes benchmarks/results/coarse_weights.json:
the final accuracy of every seed in percent. Takes about four minutes on one core.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # attackers.py uses tests/support

from attackers import SKEWED, accuracy

from featherfed.server.aggregation import strategy
from featherfed.server.aggregation.coarse_weights import coarse_weights

SEEDS = range(24)
RESULT = Path(__file__).parent / "results" / "coarse_weights.json"


def accuracies(shards: str, coarse: bool) -> list[float]:
    """Return the accuracy of each seed's final model in percent."""
    strategy.coarse_weights = coarse_weights if coarse else lambda counts, *_: dict(counts)
    found = [accuracy({"rule": "mean"}, "balanced", "none", 0, shards, seed) for seed in SEEDS]
    return [round(100 * value, 2) for value in found if value is not None]


def main() -> None:
    """Measure, print and write."""
    logging.disable(logging.CRITICAL)
    results: dict[str, Any] = {}
    for shards in SKEWED:
        exact, coarse = accuracies(shards, False), accuracies(shards, True)
        lost = [e - c for e, c in zip(exact, coarse, strict=True)]
        results[shards] = {
            "points lost, mean": round(mean(lost), 2),
            "points lost, standard error": round(stdev(lost) / len(lost) ** 0.5, 2),
            "exact weights, percent by seed": exact,
            "coarse weights, percent by seed": coarse,
        }
    text = json.dumps(results, indent=1) + "\n"
    print(text)
    RESULT.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
