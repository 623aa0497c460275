"""Whole runs give the digests that they always gave, round by round: no refactoring may move a bit.

tests/golden/runs.json is never regenerated; a run whose arithmetic must change gets a new name.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import WithoutData, profile
from support.evaluator import DistanceEvaluator
from support.federation import settings
from support.models import MANIFEST, TASK

from featherfed.compression.arrays import Array
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.sweep.simulate import simulate

GOLDEN = Path(__file__).parent / "golden" / "runs.json"
ROUNDS = 6
CLIENTS = 5

WHOLE = {"steps": "whole"}

RUNS: dict[str, dict[str, Any]] = {
    "steps, sketch, weights 1 1.5 2": {"compression": {"uplink": "balanced"}},
    "steps, sketch, equal shards": {"compression": {"uplink": "balanced"}},
    "steps, sketch, not forwarded": {
        "compression": {"uplink": "balanced", "broadcast": "aggregate"},
    },
    "steps, sketch, sampled cohorts, weights 1 1.5 2": {
        "compression": {"uplink": "4kB/round"},
        "clients": {"minimum": CLIENTS, "fraction": 0.6, "quorum": 1.0, "patience": 0},
    },
    "steps, sketch of peaks, weights 1 1.5 2": {
        "compression": {"uplink": "sketch(0.05, 0.1875, bounded)"}
    },
    "error feedback": {
        "compression": {"uplink": "topk(0.05) | quantize(4) | zstd"},
        "aggregation": WHOLE,
    },
    "steps, prune, sketch, weights 1 1.5 2": {
        "optimization": {"method": "prune", "final_sparsity": 0.7},
    },
    "prune, error feedback": {
        "optimization": {"method": "prune", "final_sparsity": 0.7},
        "compression": {"uplink": "deadzone(0.3) | zstd(1)"},
        "aggregation": WHOLE,
    },
    "keyed": {
        "compression": {"uplink": "eden", "downlink": "qsgd(4) | zstd"},
        "aggregation": WHOLE,
    },
    "median": {
        "aggregation": {"rule": "median", "byzantine": 1},
        "compression": {"uplink": "float16 | zstd", "downlink": "quantize(8) | zstd"},
    },
}
GONE = {
    "private",  # its noise followed from a stored secret; now it is random
    # These shortened their last two steps alone.
    "sketch, coarse weights",
    "sketch, equal shards",
    "sketch, not forwarded",
    "sketch, sampled cohorts, coarse weights",
    "prune, sketch, coarse weights",
    # Their weights were powers of two.
    "steps, sketch, coarse weights",
    "steps, sketch, sampled cohorts, coarse weights",
    "steps, sketch of peaks",
    "steps, prune, sketch, coarse weights",
}
"""Golden runs that nothing repeats any more."""


class Walk(WithoutData):
    """A trainer whose update follows from the client's name and the round; one client is loud."""

    def __init__(self, name: str) -> None:
        self._seed = zlib.crc32(name.encode())
        self._scale = np.float32(1.0 if name == "c4" else 0.01)  # beyond the clip of 10 medians

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        draw = np.random.default_rng([self._seed, task.round])
        moved = [w + draw.standard_normal(w.shape, np.float32) * self._scale for w in weights]
        if task.sparsity:
            moved[0] = np.where(weights[0] == 0, np.float32(0), moved[0])
        return TrainingResult(moved, 0.5)


def digests(directory: Path, changes: dict[str, Any], more: int = 10) -> list[str]:
    """Return the digest after each round; every client has `more` examples than the one before."""
    base: dict[str, Any] = {
        "rounds": ROUNDS,
        "clients": {"minimum": CLIENTS, "quorum": 1.0, "patience": 0},
    }
    names = [f"c{i}" for i in range(CLIENTS)]
    metrics = simulate(
        settings(directory, **{**base, **changes}),
        model_json="{}",
        manifest=MANIFEST,
        task=TASK,
        clients={name: profile(name, 50 + more * i).data for i, name in enumerate(names)},
        make_trainer=lambda name, plan, manifest, step: Walk(name),
        evaluator=DistanceEvaluator(),
    )
    return [round_["digest"] for round_ in metrics["rounds"]]


@pytest.mark.parametrize("name", RUNS)
def test_a_pinned_run_gives_the_digests_that_it_always_gave(tmp_path: Path, name: str) -> None:
    golden = json.loads(GOLDEN.read_text("utf-8"))
    more = 0 if "equal" in name else 10
    assert digests(tmp_path, RUNS[name], more) == golden[name]


def test_the_golden_file_has_every_run_and_no_other() -> None:
    assert set(json.loads(GOLDEN.read_text("utf-8"))) == set(RUNS) | GONE
