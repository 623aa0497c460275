"""The noise of a round's mean: logged, stored and written to metrics.json."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.coordinator import DirectRun
from support.federation import Federation
from support.models import TASK
from support.updates import honest

from featherfed.compression.exchange.noise import MeanNoise
from featherfed.compression.quantizers import QUANTIZERS
from featherfed.compression.registry import parse_codec
from featherfed.compression.sketch import Sketch
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.storage.records import AggregationRecord
from featherfed.server.storage.store import Store

Direct = Callable[..., DirectRun]
Start = Callable[..., Federation]
DENSE = {"uplink": "float16 | zstd", "downlink": "float32"}


def entries(run: DirectRun) -> list[dict[str, Any]]:
    return list(metrics.rounds(run.store, run.settings, TASK))


def test_a_round_of_sketches_tells_its_noise(
    direct_run: Direct, caplog: pytest.LogCaptureFixture
) -> None:
    run = direct_run(compression={"uplink": "sketch(0.1)", "downlink": "float32"})
    with caplog.at_level("INFO"):
        run.step(honest(5))
    stored, (entry,) = run.store.journal.noise(1), entries(run)
    assert stored is not None
    assert entry["noise"] == stored.ratio
    # One bit at a density of 0.1, of five equal clients: (pi / 2 / 0.1 - 1) / 5.
    assert entry["noise"] == pytest.approx(2.9, rel=0.25)
    payload = np.mean([client["uplink"]["payload_bytes"] for client in entry["clients"]])
    assert entry["bytes_for_noise_1"] == round(payload * entry["noise"])
    (line,) = [r for r in caplog.records if r.__dict__.get("event") == "version_made"]
    assert line.__dict__["noise"] == entry["noise"]
    assert line.getMessage().endswith(f"; noise: {entry['noise']:.1f} times the update")


@pytest.mark.parametrize(
    ("changes", "noise"),
    [
        ({"compression": DENSE}, {"noise": 0.0}),
        ({"compression": {"uplink": "topk(0.1)", "downlink": "float32"}}, {}),
        (
            {"compression": DENSE, "aggregation": {"rule": "median", "byzantine": 1}},
            {},
        ),
        (
            {
                "compression": {**DENSE, "broadcast": "aggregate"},
                "evaluation": {"clients": 0},
                "privacy": {"noise_multiplier": 0.5, "clip": 0.5},
            },
            {},
        ),
    ],
    ids=["near-lossless", "error feedback", "robust", "private"],
)
def test_other_rounds_tell_none(
    direct_run: Direct, changes: dict[str, Any], noise: dict[str, float]
) -> None:
    run = direct_run(**changes)
    run.step(honest(5))
    (entry,) = entries(run)
    assert {key: entry[key] for key in ("noise", "bytes_for_noise_1") if key in entry} == noise


@pytest.mark.parametrize("budget", ["2kB/round", "400B/round"])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_budget_says_how_much_noise_it_meant(
    federation: Start, budget: str, pruned: bool
) -> None:
    prunes = {"optimization": {"method": "prune", "final_sparsity": 0.5}} if pruned else {}
    server = federation(compression={"uplink": budget}, **prunes)
    clients = zip("abc", (0.1, 0.7, -0.3), strict=True)
    server.run_clients(*(server.client(name, value) for name, value in clients))
    server.join()
    for entry in metrics.rounds(server.store, server.settings, TASK):
        codec = parse_codec(entry["clients"][0]["codec"])
        assert isinstance(codec, Sketch)
        expansion = QUANTIZERS[codec.bits].expansion
        expected = (expansion * codec.bits / codec.density - 1) / 3  # of equal importance
        assert expected / 2 < entry["noise"] < 2 * expected
        payloads = [client["uplink"]["payload_bytes"] for client in entry["clients"]]
        assert entry["bytes_for_noise_1"] == round(np.mean(payloads) * entry["noise"])


def test_noise_is_kept_and_unknown_where_none_was(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with closing(Store(path)) as store, store.transaction():
        store.journal.add_aggregation(1, AggregationRecord())
        store.journal.add_noise(1, MeanNoise(8.4, 2.0))
    with closing(Store(path)) as store:
        noise = store.journal.noise(1)
        assert noise == MeanNoise(8.4, 2.0)
        assert noise.ratio == 4.2
        assert store.journal.noise(2) is None
