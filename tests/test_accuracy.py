"""Accuracy against bytes: small frontiers that are measured here, and the committed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.csv
import pytest
from support.processes import run

from featherfed.datasets.idx import has_idx_files
from featherfed.datasets.sources import fashion_mnist_folders
from featherfed.report.scenario import CodecRuns, Scenario, group

ROOT = Path(__file__).parent.parent
POINTS = {"exact": 0.1, "transparent": 0.4, "balanced": 0.6, "extreme": 1.0}
"""What each preset may lose of the accuracy of float32, in the mean of three seeds."""
PRESETS = list(POINTS)
FASHION = """
[grid]
codec = ["float32", "exact", "transparent", "balanced", "extreme"]
dataset = ["fashion-mnist"]
model = ["mlp"]

[run]
rounds = 7

[run.training]
epochs = 5
learning_rate = 0.01
"""


def places_of(folder: Path) -> list[Scenario]:
    """Return what a sweep measured."""
    rows, rounds = (
        pyarrow.csv.read_csv(folder / f"{name}.csv").to_pylist() for name in ("results", "rounds")
    )
    return group(rows, rounds)


def frontier(folder: Path) -> dict[str, CodecRuns]:
    """Return the codecs of a sweep's only place, by label."""
    (place,) = places_of(folder)
    return {scheme.name: scheme for scheme in place.codecs}


def lost(schemes: dict[str, CodecRuns], codec: str) -> float:
    """Return the points of accuracy that a codec loses, the mean over seeds."""
    reference, scores = schemes["float32"].scores, schemes[codec].scores
    losses = [reference[seed] - score for seed, score in scores.items()]
    return 100 * sum(losses) / len(losses)


def measured(tmp_path: Path, sweep: Path, timeout: float) -> dict[str, CodecRuns]:
    # Not one per core: the other tests use the cores.
    command = ("sweep", str(sweep), "--output", "out", "--workers", "1")
    done = run(*command, cwd=tmp_path, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return frontier(tmp_path / "out")


@pytest.mark.timeout(300)
def test_presets_on_digits_cost_few_bytes_and_little_accuracy(tmp_path: Path) -> None:
    schemes = measured(tmp_path, ROOT / "examples" / "sweep.toml", 290)
    assert schemes["float32"].mean("score") > 0.95
    # One of the 360 test images is 0.28 points.
    limits = {"exact": 0.6, "transparent": 1.2, "balanced": 1.2, "extreme": 1.7}
    for codec, limit in limits.items():
        assert lost(schemes, codec) <= limit, codec
    ups = [schemes[codec].mean("up_payload_bytes") for codec in PRESETS]
    assert ups == sorted(ups, reverse=True)
    # Usual bytes, but for rounds in which the noise is large beside the weights.
    for up, usual in zip(ups[1:], (900, 400, 250), strict=True):
        assert 0.9 * usual < up < 2.5 * usual
    assert schemes["balanced"].mean("down_payload_bytes") < 5.5 * ups[2]
    aggregate = schemes["balanced, not forwarded"]
    assert aggregate.mean("down_payload_bytes") > 5 * schemes["balanced"].mean("down_payload_bytes")
    assert {row["broadcast"] for row in aggregate.rounds} == {"delta"}
    assert {row["broadcast"] for row in schemes["balanced"].rounds} == {"bundle"}
    assert {row["broadcast"] for row in schemes["exact"].rounds} == {"delta"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not any(map(has_idx_files, fashion_mnist_folders())),
    reason="Fashion-MNIST's idx files are not here: apt-get install dataset-fashion-mnist",
)
def test_presets_on_fashion_mnist_cost_few_bytes_and_little_accuracy(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(FASHION, "utf-8")
    schemes = measured(tmp_path, tmp_path / "sweep.toml", 3500)
    assert schemes["float32"].mean("score") > 0.84
    limits = {"exact": 0.3, "transparent": 0.8, "balanced": 1.2, "extreme": 1.7}
    for codec, limit in limits.items():
        assert lost(schemes, codec) <= limit, codec


@pytest.mark.parametrize(
    ("codec", "up", "down"),
    [
        ("exact", 140_000, 140_000),
        ("transparent", 3_200, 16_000),
        ("balanced", 1_000, 5_000),
        ("extreme", 600, 3_100),
    ],
)
def test_the_committed_results_of_the_seed_configuration_keep_their_promise(
    codec: str, up: float, down: float
) -> None:
    schemes = frontier(ROOT / "benchmarks" / "results" / "presets")
    assert len(schemes[codec].runs) == len(schemes["float32"].runs) == 3
    assert schemes[codec].mean("up_payload_bytes") <= up
    assert schemes[codec].mean("down_payload_bytes") <= down
    assert lost(schemes, codec) <= POINTS[codec]


@pytest.mark.parametrize("codec", PRESETS)
def test_the_committed_results_of_other_models_lose_at_most_twice_that(codec: str) -> None:
    places = places_of(ROOT / "benchmarks" / "results" / "models")
    assert {place.key[1] for place in places} == {"mlp", "mobile", "gru"}
    for place in places:
        schemes = {scheme.name: scheme for scheme in place.codecs}
        assert lost(schemes, codec) <= 2 * POINTS[codec], place.title


def test_the_committed_results_on_skewed_data_lose_at_most_a_point() -> None:
    for place in places_of(ROOT / "benchmarks" / "results" / "noniid"):
        schemes = {scheme.name: scheme for scheme in place.codecs}
        assert len(schemes["balanced"].runs) == 3
        assert lost(schemes, "balanced") <= 1.0, place.title


def test_the_committed_results_of_more_clients_at_the_same_total_bytes_lose_no_more() -> None:
    places = places_of(ROOT / "benchmarks" / "results" / "clients")
    by_count = {p.key[-1]: {scheme.name: scheme for scheme in p.codecs} for p in places}
    assert sorted(by_count) == [5, 20, 50]
    few = lost(by_count[5], "4.5kB/round")
    for clients, schemes in by_count.items():
        assert len(schemes["4.5kB/round"].runs) == 3
        assert clients * schemes["4.5kB/round"].mean("up_payload_bytes") <= 4545
        # A tenth of a point is ten of the 10,000 test images.
        assert lost(schemes, "4.5kB/round") <= few + 0.1, clients


def test_the_committed_deliveries_lose_at_most_half_a_point_as_int8() -> None:
    for method in ("none", "prune", "cluster", "qat", "prune+qat"):
        path = ROOT / "benchmarks" / "results" / "delivery" / f"{method}.json"
        final = json.loads(path.read_text("utf-8"))["final"]
        models = {model["kind"]: model for model in final["models"]}
        assert models.keys() == {"float32", "float16", "dynamic", "int8"}
        best = models["float32"]["scores"]["accuracy"]
        for kind, model in models.items():
            assert model["num_examples"] == 10_000
            assert model["scores"]["accuracy"] >= best - 0.005, (method, kind)
            assert model["memory_bytes"] < 100e6


def test_the_committed_thirty_rounds_stay_with_float32() -> None:
    schemes = frontier(ROOT / "benchmarks" / "results" / "rounds")
    for codec, limit in {"balanced": 0.6, "extreme": 1.0}.items():
        assert lost(schemes, codec) <= limit
