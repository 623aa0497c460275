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

from featherfed.cli.tables import show_sweep
from featherfed.report.frontier import compare, frontier_figure, progress_figure, render_sweep
from featherfed.report.promises import Verdict, check, judge, promise_table
from featherfed.report.scenario import group
from featherfed.server.errors import ServerError
from featherfed.server.rounds.uplink import PRESETS, PROMISES
from featherfed.sweep.grid import Sweep, load_sweep
from featherfed.sweep.results import case_row, round_rows

Rows = list[dict[str, object]]
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


def sweep_of(training: dict[str, object], shared: dict[str, object] | None = None) -> Sweep:
    """Return a sweep of two codecs and two seeds, with these axes of training."""
    grid = {"codec": ["float32", "balanced"], "seed": [0, 1], **training}
    return Sweep.model_validate({"grid": grid, "run": {"training": shared or {}}})


def test_training_settings_are_axes() -> None:
    axes = {"learning_rate": [0.1, 0.01], "batch_size": [8, 16], "optimizer": ["sgd", "adam"]}
    cases = list(sweep_of(axes, {"epochs": 2}).cases())
    assert len(cases) == 2 * 2 * 2 * 2 * 2
    assert len({case.name for case in cases}) == len({case.title for case in cases}) == len(cases)
    assert [case.label for case in cases[:4]] == ["float32", "balanced"] * 2, "labels say nothing"
    first, last = cases[0].settings.training, cases[-1].settings.training
    assert (first.learning_rate, first.batch_size, first.epochs, first.optimizer) == (
        0.1, 8, 2, "sgd",
    )  # fmt: skip
    assert (last.learning_rate, last.batch_size, last.epochs, last.optimizer) == (
        0.01, 16, 2, "adam",
    )  # fmt: skip
    assert cases[-1].title == (
        f"{cases[-1].name}, learning rate 0.01, batch size 16, optimizer adam"
    )


def test_a_training_axis_leaves_the_names_of_runs_alone() -> None:
    before = [case.name for case in sweep_of({}, {"learning_rate": 0.1, "epochs": 3}).cases()]
    one = list(sweep_of({"learning_rate": [0.1], "epochs": [3]}).cases())
    assert [case.name for case in one] == [case.title for case in one] == before
    more = {case.name for case in sweep_of({"learning_rate": [0.2, 0.1], "epochs": [3]}).cases()}
    assert set(before) < more, "finished runs are found again beside those of another value"


def test_rows_say_how_clients_trained() -> None:
    *_, case = sweep_of({"epochs": [1, 4]}, {"optimizer": "nesterov"}).cases()
    scores = {"accuracy": 0.5, "loss": 1.0}
    totals = dict.fromkeys(("payload_bytes", "message_bytes", "control_bytes", "retry_bytes"), 10)
    final = {"scores": scores, "totals": {"uplink": totals, "downlink": totals}, "digest": "d"}
    entry = {"round": 1, "scores": scores, "clients": [], "broadcast": "delta"}
    metrics = {
        "rounds": [entry], "final": {**final, "clients": []}, "metric": {"name": "accuracy"},
        "float32_bytes": 100,
    }  # fmt: skip
    for line in (case_row(case, metrics), *round_rows(case, metrics)):
        told = {name: line[name] for name in ("learning_rate", "batch_size", "epochs", "optimizer")}
        assert told == {
            "learning_rate": 0.01, "batch_size": 32, "epochs": 4, "optimizer": "nesterov",
        }  # fmt: skip
        assert type(line["optimizer"]) is str
        assert (line["codec"], line["seed"]) == ("balanced", 1)


@pytest.mark.slow
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
        ("seed = [0, 1]", "learning_rate = [0.1]", "both set learning_rate; drop one"),
        ("seed = [0, 1]", "epochs = [2, 3]\nlearning_rate = [0.1]", "both set epochs, learning"),
        ("seed = [0, 1]", "epochs = [0]", "grid.epochs"),
        ("seed = [0, 1]", "batch_size = [16, 0]", "grid.batch_size"),
        ("seed = [0, 1]", "batch_size = []", "grid.batch_size"),
        ("seed = [0, 1]", "batch_size = [16, 32, 16]", "grid.batch_size.*16 stands there twice"),
        ("seed = [0, 1]", "batch_size = 16", "grid.batch_size"),
        ("seed = [0, 1]", 'optimizer = ["sdg"]', "grid.optimizer.*'sgd', 'momentum'"),
        ("seed = [0, 1]", "learning_rates = [0.1]", "did you mean 'learning_rate'"),
        ("learning_rate = 0.1", "learning_rate = 0.0", "learning_rate"),
        ("[run.training]\nepochs = 3\nlearning_rate = 0.1", "training = 3", "training"),
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
    codec: str, seed: int, score: float | None, up: float, metric: str = "accuracy", **more: object
) -> dict[str, object]:
    place = {"dataset": "d", "model": "m", "partition": "iid", "clients": 5}
    sizes = {name: up for name in ("up_payload_bytes", "up_sent_bytes", "down_payload_bytes")}
    return {
        **place, **sizes, "codec": codec, "seed": seed, "metric": metric, "score": score,
        "float32_bytes": 1000, "down_sent_bytes": up, "round": 1, "cumulative_bytes": 2 * up,
        "uplink": codec, **more,
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
    report = render_sweep(tmp_path, "errors", rows, rows, "float32", None, PROMISES)
    text = report.page.read_text("utf-8")
    assert not report.promises.rows
    assert "Promises" not in text, "no preset, no promise"
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


def test_runs_are_compared_where_training_is_alike() -> None:
    rows = [
        row(codec, seed, score, 10, learning_rate=rate, epochs=2)
        for rate, codec, scores in (
            (0.1, "float32", (0.9, 0.8)), (0.1, "balanced", (0.89, 0.79)),
            (0.2, "float32", (0.5, 0.6)), (0.2, "balanced", (0.5, 0.6)),
        )
        for seed, score in enumerate(scores)
    ]  # fmt: skip
    slow, fast = group(rows, rows)
    assert slow.title == "d, m, iid, 5 clients, learning rate 0.1", (
        "what is always alike is no name"
    )
    assert fast.key == ("d", "m", "iid", 5, 0.2)
    assert [len(codec.rounds) for codec in fast.codecs] == [2, 2]
    assert [compare(place, "float32", None).rows[1]["lost"] for place in (slow, fast)] == [
        "+1.00 ± 0.00",
        "+0.00 ± 0.00",
    ]


def test_tables_of_older_versions_join_newer_ones() -> None:
    older, newer = row("float32", 0, 0.9, 10), row("balanced", 0, 0.9, 10, epochs=2)
    (place,) = group([older, newer], [older, newer])
    assert place.title == "d, m, iid, 5 clients"
    assert [codec.name for codec in place.codecs] == ["float32", "balanced"]
    another = row("balanced", 0, 0.9, 10, epochs=3)
    titles = [place.title for place in group([older, newer, another], [])]
    assert titles == [f"d, m, iid, 5 clients, epochs {n}" for n in ("unknown", 2, 3)]


def test_presets_promise_more_the_more_they_send() -> None:
    assert PROMISES == {"transparent": 0.3, "balanced": 0.7, "extreme": 1.5}
    assert PROMISES.keys() < PRESETS.keys()


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([], None),
        ([5.0], None),
        ([0.7, 0.7], Verdict.KEPT),
        ([-3.0, 2.0], Verdict.KEPT),
        ([0.7 + 1e-12, 0.7 + 1e-12], Verdict.KEPT),
        ([0.8, 0.8], Verdict.BROKEN),
        # Deviation 0.3, so a standard error of 0.3 / sqrt(3) = 0.173 around a mean of 0.8 or 0.9.
        ([0.5, 0.8, 1.1], Verdict.NOISE),
        ([0.6, 0.9, 1.2], Verdict.BROKEN),
        # Deviation 0.2 * sqrt(2), so a standard error of 0.2: exactly what the mean is over.
        ([0.7, 1.1], Verdict.NOISE),
    ],
)
def test_a_promise_is_judged_by_mean_and_standard_error(
    losses: list[float], verdict: Verdict | None
) -> None:
    assert judge(losses, 0.7) is verdict


def test_a_seed_without_a_score_breaks_a_promise() -> None:
    assert judge([0.0, 0.0], 0.7, unscored=1) is Verdict.BROKEN
    assert judge([], 0.7, unscored=1) is None
    rows = [row("float32", seed, 0.9, 10) for seed in (0, 1)]
    rows += [row("balanced", 0, 0.9, 10), row("balanced", 1, None, 10)]
    table = promise_table(check(group(rows, []), "float32", PROMISES))
    assert table.rows[0]["lost"] == "+0.00, 1 without a score"
    assert table.rows[0]["verdict"] == "broken"


def seeds(codec: str, scores: list[float], metric: str = "accuracy", **more: object) -> Rows:
    return [row(codec, seed, score, 10, metric, **more) for seed, score in enumerate(scores)]


def test_promises_are_checked_seed_by_seed_in_each_scenario(tmp_path: Path) -> None:
    rows: Rows = []
    for rate, base in ((0.1, [0.90, 0.80]), (0.2, [0.70, 0.60])):
        more = {"learning_rate": rate}
        rows += seeds("extreme", [base[0] - 0.03, base[1] - 0.01 * 10 * rate], **more)
        rows += seeds("balanced", [base[0] - 0.002, base[1] - 0.004], **more)
        rows += seeds("exact", base, **more)
        rows += seeds("float32", base, **more)
    rows += [row("not forwarded", 7, 0.9, 20, uplink="balanced", learning_rate=0.1)]
    report = render_sweep(tmp_path, "promises", rows, rows, "float32", None, PROMISES)
    found = report.promises
    assert [
        tuple(r[k] for k in ("codec", "where", "seeds", "lost", "promise", "verdict"))
        for r in found.rows
    ] == [
        ("extreme", "d, m, iid, 5 clients, learning rate 0.1", "2", "+2.00 ± 1.41", "1.5 points",
         "within noise"),
        ("balanced", "d, m, iid, 5 clients, learning rate 0.1", "2", "+0.30 ± 0.14", "0.7 points",
         "kept"),
        ("not forwarded", "d, m, iid, 5 clients, learning rate 0.1", "0", "–", "0.7 points", "–"),
        ("extreme", "d, m, iid, 5 clients, learning rate 0.2", "2", "+2.50 ± 0.71", "1.5 points",
         "broken"),
        ("balanced", "d, m, iid, 5 clients, learning rate 0.2", "2", "+0.30 ± 0.14", "0.7 points",
         "kept"),
    ]  # fmt: skip
    assert (found.rows[2]["up"], found.rows[2]["down"]) == ("20", "20")
    assert found.summary == (
        "2 of 4 promises kept, 1 within noise, 1 broken. "
        "Worst: extreme in d, m, iid, 5 clients, learning rate 0.2, +2.50 ± 0.71 where it promises "
        "1.5 points. "
        "1 without a verdict: that takes two seeds, and a baseline on each."
    )
    text = report.page.read_text("utf-8")
    for told in (found.summary, "+2.00 ± 1.41", "within noise", "1.5 points"):
        assert told in text


def test_promises_are_percent_of_the_baseline_where_the_metric_is_no_share() -> None:
    rows = seeds("float32", [1.9, 2.1], "mae") + seeds("extreme", [1.92, 2.14], "mae")
    (found,) = check(group(rows, []), "float32", PROMISES)
    assert found.losses == pytest.approx([1.0, 2.0]), "of the mean of both seeds, an MAE of 2"
    assert (found.lost_text, found.promise_text) == ("+1.50 ± 0.71", "1.5 %")
    rows = seeds("float32", [-2.0, -2.0], "r2") + seeds("extreme", [-2.1, -1.9], "r2")
    (found,) = check(group(rows, []), "float32", PROMISES)
    assert found.losses == pytest.approx([5.0, -5.0]), "larger is better"
    rows = seeds("float32", [0.0, 0.0], "mae") + seeds("extreme", [0.1, 0.1], "mae")
    (found,) = check(group(rows, []), "float32", PROMISES)
    assert (found.verdict, found.lost_text) == (None, "–"), "no percent of nothing"


def test_without_a_baseline_no_promise_is_checked() -> None:
    rows = seeds("balanced", [0.9, 0.8]) + seeds("exact", [0.9, 0.8])
    places = group(rows, [])
    table = promise_table(check(places, "float32", PROMISES))
    assert (table.rows, table.summary) == ([], "")
    assert not check(places, "balanced", PROMISES), "the baseline is not compared with itself"
    assert len(check(places, "exact", PROMISES)) == 1


@pytest.mark.parametrize("rates", [(0.1,), (0.1, 0.2)])
def test_promises_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rates: tuple[float, ...]
) -> None:
    rows: Rows = []
    for rate in rates:
        for codec in ("float32", "transparent", "extreme"):
            rows += seeds(codec, [0.9, 0.8], learning_rate=rate)
    show_sweep(render_sweep(tmp_path, "s", rows, rows, "float32", None, PROMISES))
    _, _, told = capsys.readouterr().out.partition("Promises")
    count = 2 * len(rates)
    assert f"{count} of {count} promises kept." in told
    lines = [line for line in told.splitlines() if line.startswith(" extreme")]
    assert len(lines) == len(rates)
    for text in (" 2 ", " 10 ", "+0.00 ± 0.00", "1.5 points", "kept"):
        assert text in lines[0]
    assert max(map(len, told.splitlines())) <= 80


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


@pytest.mark.slow  # six runs, started twice; test_sweep_runners.py has failures
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
    assert {(r["learning_rate"], r["batch_size"], r["optimizer"]) for r in rows} == {
        ("0.1", "32", "sgd")
    }
    for told in (page, done.stdout):
        assert "of 2 promises kept" in told
