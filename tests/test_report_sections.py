"""The parts of a run's page as a live page uses them, and the charts in them."""

from __future__ import annotations

import copy
import math
import re
import time
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("PIL")

from test_report import FORECAST, HOSTILE, TASKS, metrics, of_task

from featherfed.report.chart import (
    Axis,
    Band,
    Chart,
    Dots,
    Line,
    decades_axis,
    linear_axis,
    rounds_axis,
)
from featherfed.report.schema import ReportError, parse_metrics
from featherfed.report.sections import RunPage, sections, shell
from featherfed.report.timeline import timeline_charts
from featherfed.tasks.confusion import confusion
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Input, Target, TargetKind, Task, image_task

ORDER = [
    "header", "nav", "headline", "curve", "clients", "bytes", "rounds", "best", "metrics",
    "confusion", "models", "privacy", "refusals", "pictures", "versions", "log", "settings",
]  # fmt: skip


def snapshot(clients: int = 3) -> dict[str, Any]:
    """Return what GET /api/run answers in the third round of a run."""
    return {
        "schema": 1,
        "run": "demo",
        "started": "2026-11-28T08:00:00+00:00",
        "now": "2026-11-28T08:10:00+00:00",
        "phase": "training",
        "round": 3,
        "rounds": 7,
        "version": 2,
        "deadline_in": 41.5,
        "waiting_for": 2,
        "join": "featherfed join 127.0.0.1:8765 --data readings.csv",
        "metric": {"name": "accuracy", "larger_is_better": True},
        "best": {"version": 2, "score": 0.7},
        "bytes": {"up": 10_000, "down": 30_000, "wasted": 1_234, "float32": 400_000_000},
        "points": [],
        "clients": [
            {
                "name": f"client-{index}",
                "state": ("training", "reported", "late", "lost", "excluded", "present")[index % 6],
                "heard_ago": 3.2,
                "examples": 100,
                "seconds": 4.0,
                "runtime": "litert",
                "temperature": 55.4,
                "battery": 80.0,
                "score": 0.625,
            }
            for index in range(clients)
        ],
        "refusals": [
            {
                "time": "2026-11-28T08:09:00.123+00:00",
                "client": "late-one",
                "reason": "LATE",
                "text": "the round is closed",
            }
        ],
        "versions": [{"version": 2, "digest": "ab" * 32, "size": 4321}],
        "log": [{"time": "2026-11-28T08:09:59+00:00", "level": "WARNING", "text": "disk full"}],
    }


class Elements(HTMLParser):
    """Checks that elements are closed in order, and collects tags, attributes and text."""

    VOID = frozenset({"meta", "img", "input", "line", "rect", "path", "polygon"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, {key: value or "" for key, value in attrs}))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.seen if name == tag]


def test_the_parts_have_an_order_and_are_whole_elements() -> None:
    parts = sections(metrics())
    assert list(parts) == ORDER
    for name, html in parts.items():
        elements = Elements(html)
        if html and name not in ("header", "nav"):
            assert elements.seen[0][0] == "h2", name
    filled = [name for name in ORDER[2:] if parts[name]]
    links = [link["href"] for link in Elements(parts["nav"]).of("a")]
    assert links == [f"#{name}" for name in filled], "only to what there is"
    assert parts["privacy"] == parts["log"] == parts["confusion"] == ""


def test_every_table_has_a_caption_and_scopes() -> None:
    data = metrics()
    data["final"]["confusion"] = np.eye(10, dtype=int).tolist()
    for html in sections(data, snapshot()).values():
        elements = Elements(html)
        assert len(elements.of("table")) == len(elements.of("caption"))
        assert all("scope" in heading for heading in elements.of("th"))
        regions = [e for e in elements.of("div") if e.get("class") == "scroll"]
        captions = {e["id"] for e in elements.of("caption")}
        assert {e["aria-labelledby"] for e in regions} == captions
        assert all(e["tabindex"] == "0" for e in regions)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("evaluated_by", ["server", "clients", None])
@pytest.mark.parametrize("final", [True, False])
def test_every_task_has_a_page(name: str, evaluated_by: str | None, final: bool) -> None:
    data = of_task(TASKS[name], evaluated_by, rounds=3, final=final)
    for live in (None, snapshot()):
        page = Elements(shell("a run", sections(data, live)))
        assert len(page.of("main")) == len(page.of("h1")) == 1
        charts = [e["aria-labelledby"] for e in page.of("svg") if e.get("class") == "chart"]
        assert len(charts) >= 4
    assert bool(sections(data)["best"]) == (evaluated_by is not None)


def test_discarded_rounds() -> None:
    data = metrics(rounds=3)
    data["rounds"][1]["discarded"] = "none of its updates counts"
    parts = sections(data)
    assert "discarded: none of its updates counts" in parts["rounds"]
    assert "2 (none of its updates counts)" in parts["curve"]
    (chart,) = timeline_charts(parse_metrics(data))
    assert [mark.name for mark in chart.marks] == ["open", "discarded"]


def test_hostile_names_stay_text_everywhere() -> None:
    data = metrics(2)
    script = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    for entry in data["rounds"]:
        entry["clients"][0].update(client=script, runtime=script)
        entry.update(missing=[script], discarded=script, opened=script, broadcast=script)
        entry["refused"][0].update(client=script, reason=script, detail=script)
        entry["digest"] = script
    data.update(run=script, dataset=script, settings={script: script}, machine={script: script})
    data["task"]["target"]["class_names"] = [script] * 2
    data["task"]["inputs"][0]["name"] = script
    data["task"]["metrics"].append(script)
    data["metric"]["name"] = script
    data["final"].update(confusion=[[1, 2], [3, 4]], failed=[{"file": script, "why": script}])
    live = snapshot()
    live.update(phase=script, join=script, metric={"name": script, "larger_is_better": True})
    live["clients"][0].update(name=script, state=script, runtime=script)
    live["clients"][1].update(name=HOSTILE)
    live["refusals"][0] = dict.fromkeys(live["refusals"][0], script)
    live["log"][0] = dict.fromkeys(live["log"][0], script)
    for now in (None, live):
        page = RunPage.of(data)
        text = shell(script, page.sections(now))
        assert "<script" not in text
        assert "onerror=alert(1)>" not in text.replace("onerror=alert(1)&gt;", "")
        assert not Elements(text).of("img")
        assert "\u202e" not in text
    for chart in page.charts:
        ElementTree.fromstring(chart.file())


def test_the_snapshot_is_in_header_clients_refusals_and_log() -> None:
    data = metrics(final=False)
    page, live = RunPage.of(data), snapshot(4)
    live["clients"][3]["name"] = "new"
    frozen, parts = page.sections(), page.sections(live)
    text = {name: Elements(html).text for name, html in parts.items()}
    for expected in (
        "Clients train",
        "round 3 of 7",
        "version 2",
        "2 more clients wanted",
        "best accuracy so far 70.00 %",
        "1,234 B sent in vain",
        "closes at the latest in 41.5 s",
        "featherfed join 127.0.0.1:8765 --data readings.csv",
    ):
        assert expected in text["header"]
    assert "not finished" not in text["header"]
    assert '<span data-seconds="41.5">' in parts["header"]
    assert "40.0 kB" in text["headline"]
    assert "10,000× less than 400.0 MB as float32" in text["headline"]
    rows = re.findall(r"<tr>.*?</tr>", parts["clients"], re.DOTALL)[1:]
    cells = [re.sub(r"<.*?>", "|", row).replace("\n", "").split("|") for row in rows]
    told = [[cell for cell in row if cell] for row in cells]
    assert told[0][:9] == [
        "client-0", "training", "3.2 s ago", "4.0 s", "25", "55 °C", "80 %", "62.50 %", "litert",
    ]  # fmt: skip
    by_name = {row[0]: row for row in told}
    assert by_name["new"][1] == "lost"
    assert by_name["away"][1:3] == ["not here", "–"], "who is in a round and not in the snapshot"
    assert "08:09:00" in text["refusals"]
    assert "the round is closed" in text["refusals"]
    assert "WARNING" in text["log"]
    assert "disk full" in text["log"]
    assert "4,321 B" in text["versions"]
    changed = {name for name in parts if parts[name] != frozen[name]}
    assert changed == {"header", "nav", "headline", "clients", "refusals", "versions", "log"}
    later = copy.deepcopy(live)
    later["deadline_in"] = 40.5
    again = page.sections(later)
    assert {name for name in parts if again[name] != parts[name]} == {"header"}


def test_a_snapshot_may_know_next_to_nothing() -> None:
    data = metrics(0, 0, final=False)
    live = {key: [] if isinstance(value, list) else None for key, value in snapshot().items()}
    parts = sections(data, live)
    assert "No client has joined yet" in parts["clients"]
    assert "No round has finished yet" in parts["curve"]
    live["clients"] = [dict.fromkeys(snapshot()["clients"][0], None) | {"name": "a"}]
    assert '<th scope="row">a</th>' in sections(data, live)["clients"]


def test_a_shell_allows_its_script_and_no_other() -> None:
    parts = {**sections(metrics()), "controls": "<h2>Control</h2>"}
    assert "script" not in shell("demo", parts)
    page = shell("demo", parts, "let a = '<b>' && 1;")
    assert "<script>let a = '<b>' && 1;</script>" in page
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", page)
    assert "connect-src 'self'" in page
    assert '<section id="controls"><h2>Control</h2></section>' in page
    for script in ("a = '</SCRIPT>'", "<!--"):
        with pytest.raises(ReportError, match="the script of a page"):
            shell("demo", parts, script)


def test_the_best_version_stands_beside_the_last() -> None:
    data = metrics(rounds=4)
    for entry, score in zip(data["rounds"], (0.5, 0.9, None, 0.8), strict=True):
        entry["scores"]["accuracy"] = score
    data["final"].update(version=4, scores={"loss": 0.4, "accuracy": 0.8})
    html = sections(data)["best"]
    assert "Version 2 has the best accuracy, 90.00 %." in html
    assert "80.00 %" in html
    assert "featherfed export DIR --best" in html
    data["metric"]["larger_is_better"] = False
    assert "Version 1 has the best accuracy, 50.00 %." in sections(data)["best"]
    data["rounds"][3]["scores"]["accuracy"] = 0.5
    assert "The last version, 4, is the best" in sections(data)["best"], "the newest of several"


def test_the_confusion_matrix_says_how_many_are_right() -> None:
    data = metrics()
    counts = np.eye(10, dtype=int) * 9
    counts[3, 5] = 1
    data["final"]["confusion"] = counts.tolist()
    html = sections(data)["confusion"]
    assert "90.00 %" in html
    assert 'class="miss" style="--share: 0.10">1<' in html
    data["final"]["confusion"] = counts[:9].tolist()
    assert sections(data)["confusion"] == "", "not of this task"
    data["final"]["confusion"] = [[-1]]
    with pytest.raises(ReportError, match="confusion"):
        sections(data)


def test_arrivals_and_what_older_files_lack() -> None:
    data = metrics(rounds=2)
    old = sections(data)["rounds"]
    assert "did not record when updates came in" in old
    assert "First update" not in old
    for entry in data["rounds"]:
        entry.update(opened="2026-11-28T08:10:00.250+00:00", asked=9)
        for second, client in enumerate(entry["clients"], 1):
            client["arrived"] = 10.5 * second
    new = sections(data)["rounds"]
    text = Elements(new).text
    for expected in ("2026-11-28 08:10:00", "10.5 s", "31.5 s", "an update came in"):
        assert expected in text
    assert "<td>9</td>" in new
    assert new.count("<circle") == 6
    data["rounds"][0]["clients"][0]["arrived"] = -1
    with pytest.raises(ReportError, match=r"arrived is -1"):
        sections(data)


def test_a_run_of_many_clients_and_rounds_is_quick_where_it_changes() -> None:
    page, live = RunPage.of(metrics(500, 50)), snapshot(500)
    page.sections(live)
    took = []
    for number in range(5):
        live = copy.deepcopy(live)
        live["clients"][number]["state"] = "lost"
        begin = time.process_time()
        page.sections(live)
        took.append(time.process_time() - begin)
    assert min(took) < 0.1


# --- charts


def chart(*marks: Any, y: Axis | None = None) -> str:
    axis = y or linear_axis([0, 1], "{:g}".format)
    return Chart("a", "A <title>", "What & why", rounds_axis([1, 2, 3]), axis, marks).html()


def test_a_chart_says_what_it_shows() -> None:
    html = chart(Line("x < y", [(1, 0.0), (2, 1.0)]), Dots("z", [(3, 0.5)], 1))
    elements = Elements(html)
    (svg,) = (e for e in elements.of("svg") if e.get("class") == "chart")
    assert svg["role"] == "img"
    assert svg["aria-labelledby"] == "a-t a-d"
    assert "A &lt;title&gt;" in html
    assert '<desc id="a-d">What &amp; why</desc>' in html
    assert "x &lt; y" in html
    assert len(elements.of("circle")) == 3
    assert "<title>x &lt; y: 1</title>" in html
    assert "legend" not in chart(Line("alone", [(1, 0.0)])), "which the title names"


def test_a_line_is_broken_where_a_value_is_not_finite() -> None:
    html = chart(Line("", [(1, 0.0), (1.5, math.nan), (2, 1.0), (3, math.inf)]))
    (path,) = re.findall(r' d="(.*?)"', html)
    assert path.count("M") == 2
    assert "nan" not in html
    assert "inf" not in html


def test_what_lies_beyond_an_axis_is_drawn_at_its_end() -> None:
    axis = Axis(0, 1, [])
    assert [axis.place(value) for value in (-1, 0, 0.5, 2)] == [0, 0, 0.5, 1]
    logarithmic = Axis(1, 100, [], logarithmic=True)
    assert [logarithmic.place(value) for value in (0, 1, 10, 1000)] == [0, 0, 0.5, 1]
    assert Axis(3, 3, []).place(3) == 0


def test_a_band_of_one_round_can_be_seen() -> None:
    assert "polygon" in chart(Band("", [(1, 0, 1), (2, 0, 1)]))
    assert 'class="range c0"' in chart(Band("", [(1, 0, 1)]))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0, 1], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.9, 0.95], ["0.9", "0.91", "0.92", "0.93", "0.94", "0.95"]),
        ([5], ["4.8", "4.9", "5", "5.1", "5.2"]),
        ([0, 0], ["-0.4", "-0.2", "0", "0.2", "0.4"]),
        ([], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([-300, 1200], ["0", "500", "1000"]),
        ([math.nan, math.inf, 1, 1e308], ["0.96", "0.98", "1", "1.02", "1.04"]),
    ],
)
def test_ticks_are_round_numbers(values: list[float], texts: list[str]) -> None:
    assert [text for _, text in linear_axis(values, "{:g}".format).ticks] == texts


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([868, 900_136], [100, 1e3, 1e4, 1e5, 1e6]),
        ([5], [1, 10]),
        ([], [0.1, 1, 10]),
        ([1, 1e12], [0.1, 1e2, 1e5, 1e8, 1e11]),
        ([0, math.nan, 200], [100, 1000]),
    ],
)
def test_a_logarithmic_axis_has_whole_decades(values: list[float], ticks: list[float]) -> None:
    assert [tick for tick, _ in decades_axis(values, str).ticks] == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("rounds", "final", "texts"),
    [
        (range(1, 2), False, ["1"]),
        (range(1, 8), False, ["1", "2", "3", "4", "5", "6", "7"]),
        (range(1, 8), True, ["1", "3", "5", "7", "final"]),
        (range(1, 51), True, ["1", "11", "21", "31", "41", "final"]),
        (range(1, 1001), False, ["1", "201", "401", "601", "801"]),
    ],
)
def test_ticks_of_rounds(rounds: range, final: bool, texts: list[str]) -> None:
    axis = rounds_axis(list(rounds), final)
    assert [text for _, text in axis.ticks] == texts
    assert all(axis.low < tick < axis.high for tick, _ in axis.ticks)


def test_scores_of_any_size_are_drawn() -> None:
    data = of_task(FORECAST, rounds=3)
    for entry, value in zip(data["rounds"], (1e308, -1e300, 0.0), strict=True):
        entry["scores"]["mae"] = value
        entry["scores"]["loss"] = float("inf")
    html = sections(data)["curve"]
    assert not re.search(r'="[^"]*(nan|inf)[^"]*"', html)
    assert "not finite" in html


# --- the matrix itself


def test_confusion_counts_the_examples_of_each_class() -> None:
    task = image_task((2, 1, 1), ["a", "b", "c"])
    pictures = np.arange(6, dtype=np.uint8).reshape(3, 2, 1, 1)
    answers = np.array([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.9, 0.0, 0.1]], np.float32)
    labels = np.array([1, 2, 0])
    found = confusion(task, Scaling.none(task), lambda _: answers, [pictures], labels)
    assert found == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_confusion_of_one_output_of_two_classes() -> None:
    task = TASKS["yes or no"]
    answers = np.array([[0.9], [0.2], [0.6]], np.float32)
    rows, labels = np.zeros((3, 9), np.float32), np.array([1, 0, 0])
    found = confusion(task, Scaling.none(task), lambda _: answers, [rows], labels)
    assert found == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    "task",
    [
        TASKS["words"],
        TASKS["tags"],
        TASKS["number"],
        TASKS["anomaly"],
        Task(
            (Input("x", "float32", (2,)),),
            Target(TargetKind.CLASS, (), tuple(f"class {i}" for i in range(21))),
        ),
    ],
    ids=["a class each position", "labels", "values", "input", "21 classes"],
)
def test_other_tasks_have_no_confusion_matrix(task: Task) -> None:
    def predict(_: object) -> Any:
        raise AssertionError("nothing is to be predicted")

    targets = np.zeros(1)
    assert confusion(task, Scaling.none(task), predict, [targets], targets) is None
    assert confusion(task, Scaling.none(task), predict, [targets], None) is None
