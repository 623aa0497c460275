"""Sweep files, and a whole sweep of two small runs that is killed and goes on."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from support.processes import Processes, run, wait_until

from featherfed.report.frontier import (
    compare,
    frontier_figure,
    group,
    progress_figure,
    render_sweep,
)
from featherfed.server.errors import ServerError
from featherfed.sweep.grid import load_sweep

SWEEP = """
name = "small"
output = "out"

[grid]
codec = [
  "float32",
  "balanced",
  { label = "aggregate", uplink = "balanced", broadcast = "aggregate" },
]
model = ["mlp"]
clients = [3]
seed = [0, 1]

[run]
rounds = 2

[run.training]
epochs = 3
learning_rate = 0.1
"""


def load(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "sweep.toml").write_text(text, "utf-8")
    return [case.label for case in load_sweep(tmp_path / "sweep.toml").cases()]


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    assert load(tmp_path, SWEEP) == ["float32", "balanced", "aggregate"] * 2
    cases = list(load_sweep(tmp_path / "sweep.toml").cases())
    assert len({case.name for case in cases}) == 6
    assert [c.settings.compression.downlink for c in cases[:2]] == [
        "float32",
        "deadzone(0.15) | zstd(1)",
    ], "codec text goes both ways, a preset up"
    assert cases[2].settings.compression.broadcast == "aggregate"
    assert all(case.settings.clients.minimum == 3 for case in cases)


def test_an_axis_more_leaves_the_names_of_runs_alone(tmp_path: Path) -> None:
    clients = Path(__file__).parent.parent / "benchmarks" / "clients.toml"
    names = [case.name for case in load_sweep(clients).cases()]
    assert "fashion-mnist-mlp-iid-5clients-balanced-seed0-b253dce8" in names, (
        "a result that is there already must be found again"
    )
    (tmp_path / "sweep.toml").write_text(SWEEP, "utf-8")
    keras = {case.name for case in load_sweep(tmp_path / "sweep.toml").cases()}
    both = SWEEP.replace("[run]", 'runtime = ["keras", "litert"]\n\n[run]', 1)
    (tmp_path / "sweep.toml").write_text(both, "utf-8")
    cases = list(load_sweep(tmp_path / "sweep.toml").cases())
    assert {c.name for c in cases if c.runtime == "keras"} == keras
    assert len({c.name for c in cases}) == 2 * len(keras)
    assert [c.label for c in cases if c.runtime == "litert"][:2] == [
        "float32 (litert)",
        "balanced (litert)",
    ]


def test_litert_runs_stand_beside_those_of_keras(tmp_path: Path) -> None:
    text = SWEEP.replace('["mlp"]', '["mlp"]\nruntime = ["keras", "litert"]')
    text = text.replace("seed = [0, 1]", "seed = [0]").replace("rounds = 2", "rounds = 4")
    text = re.sub(r"codec = \[.*?\n\]", 'codec = ["exact", "balanced"]', text, flags=re.DOTALL)
    (tmp_path / "sweep.toml").write_text(text, "utf-8")
    done = run("sweep", "sweep.toml", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        rows = {r["codec"]: r for r in csv.DictReader(file)}
    assert list(rows) == ["exact", "balanced", "exact (litert)", "balanced (litert)"]
    for codec in ("exact", "balanced"):
        keras, litert = rows[codec], rows[f"{codec} (litert)"]
        assert float(litert["score"]) == pytest.approx(float(keras["score"]), abs=0.03)
        assert float(litert["score"]) > 0.8
        sizes = [float(row["up_payload_bytes"]) for row in (keras, litert)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
        assert float(litert["down_sent_bytes"]) > float(keras["down_sent_bytes"]), "the step"
    (path,) = (tmp_path / "out" / "cases").glob("*-balanced-litert-*.json")
    metrics = json.loads(path.read_text("utf-8"))
    (path,) = (tmp_path / "out" / "cases").glob("*clients-balanced-seed*.json")
    other = json.loads(path.read_text("utf-8"))
    losses = [[c["train_loss"] for c in m["rounds"][0]["clients"]] for m in (metrics, other)]
    assert losses[0] != losses[1], "not one of them twice: float noise differs"
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert {c["runtime"] for r in metrics["rounds"] for c in r["clients"]} == {"litert"}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("seed = [0, 1]", "sede = [0, 1]", "did you mean 'seed'"),
        ("seed = [0, 1]", "seed = []", "grid.seed"),
        ('"float32",', '"flaot32",', "float32"),
        ('"aggregate", uplink', '"balanced", uplink', "same label"),
        ("rounds = 2", "rounds = 2\nseed = 4", "which the grid decides"),
        ("rounds = 2", "rounds = 0", "rounds"),
        ("seed = [0, 1]", 'runtime = ["tflite"]', "grid.runtime"),
        ('name = "small"', "target_score = nan", "target_score"),
        ('name = "small"', "target_accuracy = 0.8", "did you mean 'target_score'"),
    ],
)
def test_a_wrong_sweep_file_is_explained(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    with pytest.raises(ServerError, match=told):
        load(tmp_path, SWEEP.replace(before, after))


def row(
    codec: str, seed: int, score: float | None, up: float, metric: str = "accuracy"
) -> dict[str, object]:
    place = {"dataset": "d", "model": "m", "partition": "iid", "clients": 5}
    sizes = {name: up for name in ("up_payload_bytes", "up_sent_bytes", "down_payload_bytes")}
    return {
        **place, **sizes, "codec": codec, "seed": seed, "metric": metric, "score": score,
        "float32_bytes": 1000, "down_sent_bytes": up, "round": 1, "cumulative_bytes": 2 * up,
    }  # fmt: skip


def test_the_table_pairs_seeds_and_counts_bytes_to_the_target() -> None:
    rows = [row("float32", 0, 0.9, 1000), row("float32", 1, 0.8, 1000)]
    rows += [row("small", 0, 0.88, 10), row("small", 1, 0.8, 30)]
    (place,) = group(rows, rows)
    found = compare(place, "float32", 0.85)
    assert (found.metric, found.lost, found.target) == ("accuracy", "Points lost", "85.00 %")
    exact, small = found.rows
    assert (exact["lost"], exact["up_ratio"]) == ("+0.00 ± 0.00", "1.0×")
    assert (small["lost"], small["up"], small["up_ratio"]) == ("+1.00 ± 1.41", "20", "50.0×")
    assert (exact["to_target"], small["to_target"]) == ("2,000 B (1 of 2)", "20 B (1 of 2)")
    assert compare(place, "nothing", None).rows[0]["lost"] == "–"


def test_smaller_errors_are_better_and_differences_plain(tmp_path: Path) -> None:
    rows = [row("float32", 0, 2.0, 1000, "mae"), row("float32", 1, 4.0, 1000, "mae")]
    rows += [row("small", 0, 2.5, 10, "mae"), row("small", 1, 3.0, 30, "mae")]
    (place,) = group(rows, rows)
    found = compare(place, "float32", None)
    assert (found.metric, found.lost, found.target) == ("MAE", "Difference", "3.0300")
    exact, small = found.rows
    assert (small["score"], small["spread"]) == ("2.7500", "2.5000 to 3.0000")
    assert small["lost"] == "-0.2500 ± 1.0607", "what is left of the error, not what is lost"
    assert (exact["to_target"], small["to_target"]) == ("2,000 B (1 of 2)", "40 B")
    page, _ = render_sweep(tmp_path, "errors", rows, rows, "float32", None)
    text = page.read_text("utf-8")
    assert "Down and left is better" in text
    assert "first has a test MAE of 3.0300 or better" in text
    assert "ccuracy" not in text
    assert "%" not in re.sub(r"<style>.*</style>|data:[^\"]*", "", text, flags=re.DOTALL)
    frontier = frontier_figure(place).axes[0].lines[0]
    assert np.asarray(frontier.get_ydata()).tolist() == [2.75], "float32 is larger, and no better"


def test_runs_without_a_score_are_shown_as_such(tmp_path: Path) -> None:
    rows = [row("float32", 0, 0.9, 1000), row("lost", 0, None, 10), row("lost", 1, 0.8, 10)]
    (place,) = group(rows, rows)
    _, lost = compare(place, "float32", None).rows
    assert (lost["score"], lost["lost"]) == ("80.00 %", "–"), "no seed in common"
    assert lost["to_target"] == "never"
    nothing = [row("lost", 0, None, 10)]
    (place,) = group(nothing, nothing)
    assert compare(place, "lost", None).rows[0]["score"] == "–"
    for figure in (frontier_figure(place), progress_figure(place)):
        figure.savefig(tmp_path / "empty.png")


def children_of(pid: int) -> list[int]:
    parents = {
        int(stat.parent.name): int(stat.read_text().rpartition(")")[2].split()[1])
        for stat in Path("/proc").glob("[0-9]*/stat")
    }
    return [child for child, parent in parents.items() if parent == pid]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans under /proc")
def test_a_sweep_goes_on_after_a_kill_and_reports(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP, "utf-8")
    killed = Processes(tmp_path)
    process = killed.start("sweep", "sweep", "sweep.toml", "--workers", "1")
    cases = tmp_path / "out" / "cases"
    wait_until(lambda: cases.is_dir() and any(cases.glob("*.json")))
    children = children_of(process.pid)
    assert children
    killed.kill("sweep")
    wait_until(lambda: not any(is_alive(child) for child in children))
    before = {path: path.stat().st_mtime_ns for path in cases.glob("*.json")}
    done = run("sweep", "sweep.toml", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 6 runs are there already" in done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["codec"] for r in rows] == ["float32", "balanced", "aggregate"] * 2
    assert pyarrow.parquet.read_table(tmp_path / "out" / "rounds.parquet").num_rows == 12
    of = {r["codec"]: r for r in rows if r["seed"] == "0"}
    assert of["balanced"]["up_payload_bytes"] == of["aggregate"]["up_payload_bytes"]
    assert float(of["balanced"]["up_payload_bytes"]) < float(of["float32"]["up_payload_bytes"]) / 50
    first = json.loads(next(iter(sorted(before))).read_text("utf-8"))
    assert first["rounds"][0]["broadcast"] in {"delta", "bundle"}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "digits, mlp, iid, 3 clients" in page
    assert page.count("data:image/png") == 2
