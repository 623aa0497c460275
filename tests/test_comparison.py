"""Runs side by side: lines over seeds, what is lost, bytes and time, and the page."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from click.testing import CliRunner

from featherfed.cli.compare import read_run
from featherfed.cli.main import app
from featherfed.report.comparison import (
    NamedRun,
    RunComparison,
    compare_runs,
    comparison_table,
)
from featherfed.report.comparison_page import comparison_page, drawings
from featherfed.report.schema import ReportError, parse_metrics
from featherfed.tasks.task import Input, Target, TargetKind, Task, image_task

PICTURES = image_task((8, 8, 1), ("a", "b"))
NUMBERS = Task((Input("x", "float32", (2,)),), Target(TargetKind.VALUES), metrics=("mae",))
HOSTILE = "<script>alert(1)</script> $\\frac{ & \"x' \u202e"


def traffic(payload: int) -> dict[str, int]:
    return {
        "payload_bytes": payload,
        "message_bytes": payload + 10,
        "control_bytes": 5,
        "retry_bytes": 0,
    }


def metrics(
    scores: Sequence[float | None],
    *,
    up: int = 1000,
    down: int = 500,
    seconds: float = 10.0,
    task: Task = PICTURES,
    final: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Return the metrics of a run of two clients, `scores` by round."""
    named = [{"loss": 1.0, task.leading: score} for score in scores]
    update = {
        "num_examples": 10,
        "train_loss": 0.5,
        "uplink": traffic(up),
        "downlink": traffic(down),
    }
    data: dict[str, Any] = {
        "schema": 2,
        "featherfed": "0.1.0",
        "run": "run",
        "dataset": "digits",
        "task": task.as_dict(),
        "metric": {"name": task.leading, "larger_is_better": task.leading == "accuracy"},
        "evaluated_by": "server",
        "num_test_examples": 100,
        "num_parameters": 1000,
        "float32_bytes": 4000,
        "settings": {"uplink": "float32", "rounds": len(scores), "seed": 0, **settings},
        "rounds": [
            {
                "round": number,
                "scores": own,
                "seconds": seconds,
                "version": number,
                "digest": "ab",
                "sparsity": None,
                "clients": [{"client": name, **update} for name in ("one", "two")],
                "missing": [],
                "refused": [],
            }
            for number, own in enumerate(named, 1)
        ],
    }
    if final:
        rounds = len(scores)
        data["final"] = {
            "scores": named[-1],
            "digest": "ab",
            "version": rounds,
            "sparsity": None,
            "seconds": seconds * rounds,
            "clients": [{"client": name, "downlink": traffic(down)} for name in ("one", "two")],
            "totals": {
                "uplink": traffic(2 * up * rounds),
                "downlink": traffic(2 * down * (rounds + 1)),
            },
            "models": [],
        }
    return copy.deepcopy(data)


def named(path: str, scores: Sequence[float | None], name: str = "", **options: Any) -> NamedRun:
    return NamedRun(path, parse_metrics(metrics(scores, **options)), name)


def two_lines() -> RunComparison:
    return compare_runs(
        [
            named("f0", [0.80, 0.90]),
            named("f1", [0.70, 0.92], seed=1),
            named("s0", [0.60, 0.88], uplink="small", up=100, down=50, seconds=2.0),
            named("s1", [0.50, 0.91], uplink="small", up=100, down=50, seconds=4.0, seed=1),
        ]
    )


# ---- figures ----


def test_runs_that_differ_by_seed_are_one_line() -> None:
    comparison = two_lines()
    assert [line.name for line in comparison.lines] == ["float32", "small"]
    assert [[run.path for run in line.runs] for line in comparison.lines] == [
        ["f0", "f1"],
        ["s0", "s1"],
    ]
    assert comparison.baseline is comparison.lines[0]
    assert comparison.lines[1].mean_score == pytest.approx(0.895)


def test_points_are_lost_seed_by_seed() -> None:
    comparison = two_lines()
    assert comparison.losses(comparison.lines[1]) == pytest.approx([2.0, 1.0])
    first, second = comparison_table(comparison).rows
    assert (first["lost"], second["lost"]) == ("–", "+1.50 ± 0.71")
    assert first["score"] == "91.00 ± 1.41 %"


def test_percent_of_the_baseline_are_lost_where_smaller_is_better() -> None:
    comparison = compare_runs(
        [
            named("a", [4.0], task=NUMBERS),
            named("b", [4.1], task=NUMBERS, uplink="small"),
            named("c", [3.8], task=NUMBERS, uplink="other"),
        ]
    )
    assert [comparison.losses(line) for line in comparison.lines[1:]] == [
        pytest.approx([2.5]),
        pytest.approx([-5.0]),
    ]
    table = comparison_table(comparison)
    assert table.lost == "% lost"
    assert table.target == "4.0400"
    assert [row["to_target"] for row in table.rows] == ["2,000 B", "never", "2,000 B"]


def test_bytes_and_time_are_per_client_and_round() -> None:
    comparison = two_lines()
    row = comparison_table(comparison).rows[1]
    assert (row["up"], row["up_sent"], row["up_ratio"]) == ("100", "104", "40.0×")
    # The final delivery is one more download: 3 in 2 rounds.
    assert (row["down"], row["down_sent"]) == ("75", "79")
    assert row["seconds"] == "3.0 s"
    assert row["rounds"] == "2"


def test_bytes_until_the_target_count_both_ways() -> None:
    comparison = two_lines()
    assert comparison.target == pytest.approx(0.90)
    # Two downloads and an upload bring the clients to version 1, and another of each to version 2.
    assert comparison.bytes_to_target(comparison.lines[0]) == [3500, 3500]
    assert comparison.bytes_to_target(comparison.lines[1]) == [350]
    assert comparison_table(comparison).rows[1]["to_target"] == "350 B (1 of 2)"


def test_curves_are_means_with_deviations() -> None:
    line = two_lines().lines[0]
    rounds = line.curve(lambda step: step.round)
    assert [(p.x, p.score) for p in rounds] == [(1, pytest.approx(0.75)), (2, pytest.approx(0.91))]
    assert rounds[0].deviation == pytest.approx(0.0707, abs=1e-4)
    assert [p.x for p in line.curve(lambda step: step.sent)] == [2000, 3500]
    assert [p.x for p in line.curve(lambda step: step.seconds)] == [10, 20]


def test_a_curve_holds_the_rounds_that_all_runs_have() -> None:
    comparison = compare_runs(
        [
            named("a", [0.5, None, 0.7], rounds=3),
            named("b", [0.6, 0.7], rounds=3, seed=1),
            named("c", [0.5], uplink="x"),
        ]
    )
    line, single = comparison.lines
    assert [p.x for p in line.curve(lambda step: step.round)] == [1]
    assert [p.deviation for p in single.curve(lambda step: step.round)] == [None]
    assert comparison_table(comparison).rows[0]["rounds"] == "2 to 3"


def test_a_run_without_a_clock_has_no_time() -> None:
    runs = [named("a", [0.5, 0.6], seconds=0.0), named("b", [0.5], uplink="x", seconds=0.0)]
    comparison = compare_runs(runs)
    assert comparison.lines[0].curve(lambda step: step.seconds) == []
    table = comparison_table(comparison)
    assert table.rows[0]["seconds"] == "–"
    assert any("no clock" in note for note in table.notes)
    assert [drawing.title for drawing in drawings(comparison)] == [
        "Over the rounds",
        "Over the bytes",
    ]


# ---- what a reader must know ----


def test_a_run_that_goes_on_is_told() -> None:
    comparison = compare_runs(
        [named("a", [0.5]), named("runs/b", [0.6, None], uplink="x", final=False)]
    )
    table = comparison_table(comparison)
    assert table.rows[1]["score"] == "60.00 %"
    assert any(note.startswith("Not ended: runs/b.") for note in table.notes)


def test_seeds_without_a_partner_are_told() -> None:
    runs = [named("a", [0.5]), named("b", [0.4], uplink="x"), named("c", [0.1], uplink="x", seed=5)]
    comparison = compare_runs(runs)
    assert comparison.losses(comparison.lines[1]) == pytest.approx([10.0])
    assert any("x alone has seed 5" in note for note in comparison_table(comparison).notes)


def test_without_shared_seeds_nothing_is_lost_or_won() -> None:
    comparison = compare_runs([named("a", [0.5]), named("b", [0.4], uplink="x", seed=5)])
    assert comparison.losses(comparison.lines[1]) is None
    assert comparison_table(comparison).rows[1]["lost"] == "–"


def test_a_score_that_is_missing_is_told() -> None:
    comparison = compare_runs([named("a", [0.5]), named("b", [0.4, None], uplink="x")])
    table = comparison_table(comparison)
    assert table.rows[1]["score"] == "–"
    assert "Without a score at the end: b." in table.notes


def test_other_test_data_are_told() -> None:
    other = metrics([0.6], uplink="x")
    other["num_test_examples"] = 50
    runs = [named("a", [0.5]), NamedRun("b", parse_metrics(other))]
    (note,) = comparison_table(compare_runs(runs)).notes
    assert "digits (50 examples, b)" in note


def test_a_baseline_of_zero_has_no_percent() -> None:
    runs = [named("a", [0.0], task=NUMBERS), named("b", [1.0], task=NUMBERS, uplink="x")]
    comparison = compare_runs(runs)
    assert comparison.losses(comparison.lines[1]) is None


# ---- names ----


def test_lines_are_named_after_what_differs() -> None:
    runs = [
        named("a", [0.5], uplink="x", rounds=7),
        named("b", [0.5], uplink="x", rounds=9),
        named("c", [0.5], uplink="y", rounds=9),
    ]
    names = [line.name for line in compare_runs(runs).lines]
    assert names == ["x, rounds 7", "x, rounds 9", "y, rounds 9"]


def test_a_long_difference_gives_paths_as_names() -> None:
    runs = [named("runs/a", [0.5]), named("runs/b", [0.5], uplink="topk(0.1) | " * 9)]
    assert [line.name for line in compare_runs(runs).lines] == ["runs/a", "runs/b"]


def test_given_names_make_lines() -> None:
    runs = [named("a", [0.5], "old"), named("b", [0.6], "new"), named("c", [0.7], "old", seed=1)]
    comparison = compare_runs(runs, "new")
    assert [line.name for line in comparison.lines] == ["old", "new"]
    assert len(comparison.lines[0].runs) == 2
    assert comparison.baseline.name == "new"


def test_the_baseline_may_be_a_path() -> None:
    runs = [named("runs/a", [0.5]), named("runs/b", [0.5], uplink="x")]
    assert compare_runs(runs, "runs/b").baseline.name == "x"
    with pytest.raises(ReportError, match="no line 'y' for the baseline; there are float32, x"):
        compare_runs(runs, "y")


# ---- refusals ----


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda d: d["metric"].update(name="f1"), r"leading metric accuracy .* and f1"),
        (lambda d: d.update(evaluated_by="clients"), "evaluated by server and clients"),
        (
            lambda d: d["task"]["inputs"][0].update(shape=[9, 9, 1]),
            r"inputs image uint8 \[8, 8, 1\] and image uint8 \[9, 9, 1\]",
        ),
        (
            lambda d: d["task"]["target"].update(class_names=["a", "c"]),
            r"target class of 2 \(a, b\) and class of 2 \(a, c\)",
        ),
    ],
)
def test_other_tasks_are_refused_by_what_differs(change: Any, wanted: str) -> None:
    data = metrics([0.5])
    change(data)
    other = NamedRun("runs/b", parse_metrics(data))
    with pytest.raises(ReportError, match=wanted) as caught:
        compare_runs([named("runs/a", [0.5]), other])
    assert str(caught.value).startswith("runs/a and runs/b cannot be compared")


def test_all_that_differs_is_named() -> None:
    with pytest.raises(ReportError, match=r"leading metric .*; inputs .*; target "):
        compare_runs([named("a", [0.5]), named("b", [0.5], task=NUMBERS)])


def test_equal_settings_with_one_seed_are_refused() -> None:
    with pytest.raises(ReportError, match=r"a and b have the same settings and the seed 0;.*NAME="):
        compare_runs([named("a", [0.5]), named("b", [0.6])])


def test_one_name_for_different_settings_is_refused() -> None:
    runs = [named("a", [0.5], "n"), named("b", [0.5], "n", uplink="x", seed=1)]
    with pytest.raises(ReportError, match=r"both named 'n', and differ by more.*uplink float32"):
        compare_runs(runs)


def test_two_lines_of_one_name_are_refused() -> None:
    runs = [named("a", [0.5], "x"), named("b", [0.5], uplink="x"), named("c", [0.5], uplink="y")]
    with pytest.raises(ReportError, match="a and b would both be 'x'"):
        compare_runs(runs)


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(ReportError, match="give two or more"):
        compare_runs([named("a", [0.5])])


# ---- page ----


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_escapes_names() -> None:
    runs = [named("a", [0.5, 0.6], HOSTILE), named("b", [0.6, 0.7], uplink="x")]
    text = comparison_page(compare_runs(runs))
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3
    assert "alert(1)" in page.text
    assert "\u202e" not in text
    assert not re.search(r"(?:src|href)=\"(?!#)", text)
    assert "://" not in text.replace("http://www.w3.org/", "")


def test_drawings_take_the_colours_of_the_page() -> None:
    for drawing in drawings(two_lines()):
        assert "fill: var(--ink)" in drawing.svg
        assert "#1b2430" not in drawing.svg.lower()
        assert "<style" not in drawing.svg
        assert 'role="img"' in drawing.svg


def test_equal_comparisons_give_equal_pages() -> None:
    assert comparison_page(two_lines()) == comparison_page(two_lines())


# ---- the command ----


def write(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(data), "utf-8")
    return folder


def test_the_command_prints_a_table_and_writes_the_page(tmp_path: Path) -> None:
    one = write(tmp_path / "one", metrics([0.8, 0.9]))
    two = write(tmp_path / "two", metrics([0.7, 0.85], uplink="balanced", up=10))
    page = tmp_path / "pages" / "compare.html"
    done = CliRunner().invoke(
        app, ["compare", str(one), f"mine={two / 'metrics.json'}", "--output", str(page)]
    )
    assert done.exit_code == 0, done.output
    assert "mine" in done.output
    assert "+5.00" in done.output
    assert f"page: {page}" in done.output.replace("\n", "")
    assert max(map(len, done.output.splitlines()[:8])) <= 80
    assert "mine" in page.read_text("utf-8")


def test_a_run_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {**metrics([0.5]), "schema": 1})
    new = write(tmp_path / "new", metrics([0.5], uplink="x"))
    done = CliRunner().invoke(app, ["compare", str(new), str(old)])
    assert done.exit_code == 1
    assert f"{old / 'metrics.json'}: schema is 1, this featherfed reads 2" in done.output


def test_a_path_may_hold_the_sign_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "a=b", metrics([0.5]))
    assert read_run(str(folder)).name == ""
    assert read_run(f"x={folder}").name == "x"
    with pytest.raises(ReportError, match="give RUN, or NAME=RUN"):
        read_run(f"={tmp_path}/c")
    with pytest.raises(ReportError, match="no such file"):
        read_run(str(tmp_path / "nothing"))


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    one = write(tmp_path / "one", metrics([0.8]))
    two = write(tmp_path / "two", metrics([0.7], uplink="x"))
    done = CliRunner().invoke(app, ["compare", str(one), str(two), "--output", str(tmp_path)])
    assert done.exit_code == 1
    assert "cannot write the page" in done.output
