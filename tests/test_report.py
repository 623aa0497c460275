import base64
import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("jinja2")

from rich.console import Console

from featherfed.models import tflite
from featherfed.proto.plan_terms import Loss
from featherfed.report import metric as metric_texts
from featherfed.report import summary
from featherfed.report.card import model_card
from featherfed.report.chart import Dots
from featherfed.report.curves import clients_charts, learning_charts, own_charts
from featherfed.report.render import render
from featherfed.report.schema import ReportError, parse_metrics
from featherfed.report.table import models_table, round_table
from featherfed.tasks.metrics import metric
from featherfed.tasks.task import Input, Target, TargetKind, Task, Values, image_task

HOSTILE = "<script>alert(1)</script> $\\frac{ [red] \u202e _x"


def traffic(payload: int, retry: int = 0) -> dict[str, int]:
    return {
        "payload_bytes": payload,
        "message_bytes": payload + 140,
        "control_bytes": 120,
        "retry_bytes": retry,
    }


def metrics(
    clients: int = 3, rounds: int = 2, *, accuracy: float | None = 0.7, final: bool = True
) -> dict[str, Any]:
    names = [f"client-{index}" for index in range(clients)]
    update = {
        "runtime": "litert",
        "num_examples": 100,
        "scores": {"loss": 0.55, "accuracy": accuracy},
        "before": None,
        "after": None,
        "train_loss": 0.5,
        "uplink": traffic(868, retry=10),
        "downlink": traffic(900_000),
    }
    entries = [
        {
            "round": number,
            "scores": {"loss": 0.6, "accuracy": accuracy},
            "spread": None,
            "seconds": 93.1,
            "version": number,
            "digest": "ab" * 32,
            "sparsity": 0.0,
            "clients": [{"client": name, **update} for name in names],
            "missing": ["away"],
            "refused": [{"client": "bad", "reason": "NON_FINITE", "detail": "tensor 2"}],
            "noise": 4.2,
            "bytes_for_noise_1": 3646,
        }
        for number in range(1, rounds + 1)
    ]
    data: dict[str, Any] = {
        "schema": 2,
        "featherfed": "0.1.0",
        "run": "demo",
        "dataset": "digits",
        "task": image_task((8, 8, 1), [f"class {index}" for index in range(10)]).as_dict(),
        "metric": {"name": "accuracy", "larger_is_better": True},
        "evaluated_by": "server",
        "num_test_examples": 360,
        "num_parameters": 225034,
        "float32_bytes": 900136,
        "settings": {"uplink": "subsample(0.03) | sign", "rounds": rounds, "nested": {"a": [1]}},
        "started": "2025-11-23T08:10:00+00:00",
        "machine": {"cpu": "two cores"},
        "rounds": entries,
    }
    if final:
        data["final"] = {
            "scores": {"loss": 0.4, "accuracy": accuracy},
            "digest": "cd" * 32,
            "version": rounds,
            "sparsity": 0.5,
            "seconds": 700.0,
            "clients": [{"client": name, "downlink": traffic(4000)} for name in names],
            "totals": {"uplink": traffic(99_999), "downlink": traffic(88_888)},
            "models": [
                {
                    "file": "model_int8.tflite",
                    "kind": "int8",
                    "bytes": 235392,
                    "gzip_bytes": 227749,
                    "scores": {"loss": 0.5, "accuracy": 0.78},
                    "num_examples": 360,
                    "latency_ms": 0.0234,
                    "latency_p95_ms": 1.26,
                    "memory_bytes": 53_235_712,
                    "idle_memory_bytes": 40_894_464,
                    "inputs": [
                        {"name": "image", "dtype": "uint8", "scale": 1 / 255, "zero_point": 0}
                    ],
                    "runtime": "ai-edge-litert 2.3.0",
                }
            ],
            "num_calibration_examples": 200,
            "failed": [],
        }
    # A round trip, so that no two rows share an object.
    copied: dict[str, Any] = json.loads(json.dumps(data))
    return copied


def of_task(task: Task, evaluated_by: str | None = "clients", **options: Any) -> dict[str, Any]:
    """Return the metrics of a run of another task.

    If clients evaluate, a round's scores are known one round later, and at the end: the newest
    round's are not if the run goes on.
    """
    data = metrics(**options)
    rng = np.random.default_rng(0)
    better = metric(task.leading).larger_is_better

    def scores(progress: float) -> dict[str, float | None]:
        part = 0.8 * progress + 0.1 * rng.random()
        names = ("loss", *task.metrics)
        return {n: part if better and n != "loss" else 2.0 - part for n in names}

    unknown: dict[str, float | None] = dict.fromkeys(("loss", *task.metrics))
    rounds = len(data["rounds"])
    for entry in data["rounds"]:
        progress = entry["round"] / (rounds + 1)
        known = evaluated_by == "server" or (
            evaluated_by == "clients" and ("final" in data or entry["round"] < rounds)
        )
        entry["scores"] = scores(progress) if known else unknown
        for client in entry["clients"]:
            client["scores"] = scores(progress) if evaluated_by == "server" else None
            if evaluated_by == "clients":
                client.update(before=scores(progress - 0.1), after=scores(progress + 0.1))
        if known and evaluated_by == "clients":
            found = entry["scores"][task.leading]
            entry["spread"] = [0.9 * found, 1.1 * found]
    data.update(
        task=task.as_dict(),
        metric={"name": task.leading, "larger_is_better": better},
        evaluated_by=evaluated_by,
        num_test_examples=360 if evaluated_by == "server" else 0,
        dataset="digits" if evaluated_by == "server" else None,
    )
    if "final" in data:
        data["final"]["scores"] = scores(1.0) if evaluated_by else unknown
        for client in data["final"]["clients"]:
            if evaluated_by == "clients":
                client["scores"] = scores(1.0)
        (model,) = data["final"]["models"]
        model["scores"] = scores(1.0) if evaluated_by == "server" else {}
        model["num_examples"] = data["num_test_examples"]
        model["inputs"] = [
            {"name": given.name, "dtype": "int8", "scale": 0.05, "zero_point": -3}
            if given.dtype != "int32"
            else {"name": given.name, "dtype": "int32", "scale": None, "zero_point": None}
            for given in task.inputs
        ]
        data["final"]["num_calibration_examples"] = 200 if evaluated_by == "server" else 0
    copied: dict[str, Any] = json.loads(json.dumps(data))
    return copied


FORECAST = Task(
    (Input("history", "float32", (24, 3), standardize=True), Input("hour", "int32", (), 1.0, 24)),
    Target(TargetKind.VALUES, (6,), standardize=True),
    metrics=("mae", "rmse", "r2"),
)
TAGS = Task(
    (Input("sensor", "float32", (64, 6)),),
    Target(TargetKind.LABELS, (3,), ("walks", "talks", "sits")),
)
ANOMALY = Task((Input("frame", "uint8", (16, 16, 1), 127.5),), Target(TargetKind.INPUT))
WORDS = Task(
    (Input("words", "int32", (20,), vocabulary=500),),
    Target(TargetKind.CLASS, (20,), ("noun", "verb", "other")),
    metrics=("perplexity", "top2"),
)
YES_OR_NO = Task(
    (Input("row", "float32", (9,)),),
    Target(TargetKind.CLASS, (), ("no", "yes")),
    Loss.BINARY_CROSSENTROPY,
)
NUMBER = Task((Input("row", "float32", ()),), Target(TargetKind.VALUES))
TASKS = {
    "forecast": FORECAST, "tags": TAGS, "anomaly": ANOMALY, "words": WORDS,
    "yes or no": YES_OR_NO, "number": NUMBER,
}  # fmt: skip


def pictures(clients: int = 3, channels: int = 1, classes: int = 10) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    predictions = rng.random((clients + 1, classes)).astype(np.float32)
    return {
        "samples": rng.integers(0, 256, (classes, 6, 8, 8, channels), dtype=np.uint8),
        "class_names": np.array([f"class {index} $" for index in range(classes)]),
        "image": rng.integers(0, 256, (8, 8, channels), dtype=np.uint8),
        "image_label": 4,
        "predictor_names": np.array([*(f"client-{i}" for i in range(clients)), "global"]),
        "predictions": predictions / predictions.sum(1, keepdims=True),
    }


def write(folder: Path, data: object, arrays: dict[str, Any] | None = None) -> Path:
    (folder / "metrics.json").write_text(json.dumps(data))
    if arrays:
        np.savez(folder / "pictures.npz", **arrays)
    return folder


class Page(HTMLParser):
    """Collects what a browser would load, the tags, ids, charts and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.charts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = {key: value or "" for key, value in attrs}
        self.loads += [value for key, value in named.items() if key in ("src", "srcset")]
        if tag == "svg" and named.get("class") == "chart":
            self.charts.append(named["aria-labelledby"].split("-t ")[0])
        if "href" in named:
            self.links.append(named["href"])
        if "id" in named:
            self.ids.append(named["id"])

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(folder: Path) -> Page:
    path = render(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert {link[:1] for link in page.links} <= {"#"}
    assert {link[1:] for link in page.links} <= set(page.ids), "no link leads nowhere"
    plots = sorted(path.stem for path in (folder / "plots").glob("*.svg"))
    assert set(page.charts) <= set(plots)
    for name in plots:
        ElementTree.parse(folder / "plots" / f"{name}.svg")
    for uri in page.loads:
        kind, _, data = uri.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    return page


def test_whole_page(tmp_path: Path) -> None:
    page = rendered(write(tmp_path, metrics(), pictures()))
    assert len(page.loads) == 11, "the test image, and samples of ten classes"
    assert page.charts == [
        "score-rounds",
        "score-bytes",
        "loss-rounds",
        "loss-bytes",
        "clients",
        "bytes",
        "overhead-up",
        "overhead-down",
        "timeline",
    ]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(
        f"{name}.svg" for name in page.charts
    )
    for text in (
        "70.00 %",
        "868 B",
        "1,037\N{MULTIPLICATION SIGN}",
        "1,138",
        "away",
        "NON_FINITE",
        "235,392",
        "99,999",
    ):
        assert text in page.text
    assert "not finished" not in page.text
    assert "subsample(0.03) | sign" in page.text
    assert page.text.count("litert\n") == 3, "each client's runtime"


def test_a_page_of_a_run_that_told_no_runtimes(tmp_path: Path) -> None:
    data = metrics()
    for entry in data["rounds"]:
        for client in entry["clients"]:
            del client["runtime"]
    assert "Runtime" not in rendered(write(tmp_path, data)).text


def test_the_page_tells_the_noise_that_the_bytes_meant(tmp_path: Path) -> None:
    data = metrics()
    text = rendered(write(tmp_path, data)).text
    assert "In round 2, noise: 4.2 times the update, with 868 B of payload up from a client" in text
    assert "would have taken about 3,646 B" in text
    assert "For noise 1" in text
    del data["rounds"][1]["bytes_for_noise_1"]
    data["rounds"][1]["noise"] = 0.0
    text = rendered(write(tmp_path, data)).text
    assert "In round 2, noise: 0 times the update." in text
    for entry in data["rounds"]:
        for key in ("noise", "bytes_for_noise_1"):
            entry.pop(key, None)
    assert "oise" not in rendered(write(tmp_path, data)).text, "older runs, and those without any"


@pytest.mark.parametrize(
    ("data", "arrays", "images", "charts"),
    [
        (metrics(1, 1), pictures(1, 3), 11, 9),
        (metrics(50, 30), pictures(50), 11, 9),
        (metrics(3, 2, accuracy=None), None, 0, 6),
        (metrics(2, 13), pictures(2, 3, classes=60), 41, 9),
        (metrics(0, 2), None, 0, 3),
        (metrics(0, 0, final=False), None, 0, 0),
    ],
    ids=["one", "many", "no accuracy", "many classes", "nobody", "nothing yet"],
)
def test_odd_runs(
    tmp_path: Path, data: dict[str, Any], arrays: dict[str, Any] | None, images: int, charts: int
) -> None:
    page = rendered(write(tmp_path, data, arrays))
    assert (len(page.loads), len(page.charts)) == (images, charts)


def test_unfinished(tmp_path: Path) -> None:
    page = rendered(write(tmp_path, metrics(final=False)))
    assert "Run not finished" in page.text
    assert "so far" in page.text


def test_hostile_names(tmp_path: Path) -> None:
    data = metrics(1)
    for entry in data["rounds"]:
        entry["clients"][0].update(client=HOSTILE, runtime=HOSTILE)
        entry["missing"] = [HOSTILE]
        entry["refused"][0].update(client=HOSTILE, reason=HOSTILE, detail="\ud800")
    data.update(run=HOSTILE, dataset=HOSTILE, settings={HOSTILE: HOSTILE})
    data["final"]["models"][0]["file"] = HOSTILE
    arrays = pictures(1)
    arrays["predictor_names"] = np.array([HOSTILE, HOSTILE])
    arrays["class_names"] = np.array([f"{i} \u4e2d$^" for i in range(10)])
    page = rendered(write(tmp_path, data, arrays))
    assert HOSTILE.replace("\u202e", "\ufffd") in page.text
    assert "[red]" in printed(models_table(data))


def test_not_finite(tmp_path: Path) -> None:
    data = metrics()
    data["rounds"][1]["scores"]["loss"] = float("nan")
    assert "not finite" in rendered(write(tmp_path, data)).text


def test_nothing_sent(tmp_path: Path) -> None:
    data = metrics(1, 1)
    data["rounds"][0]["clients"][0].update(uplink=traffic(0), downlink=traffic(0))
    rendered(write(tmp_path, data))


def edited(*path: Any, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(metrics())
    node: Any = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"the file is \[\]"),
        ({}, "schema is .*required"),
        (edited("schema", value=1), "schema is 1, this featherfed reads 2; install the featherfed"),
        ({"schema": "x" * 500}, "schema is 'x{59}, this featherfed reads 2"),
        ({"schema": [2]}, r"schema is \[2\]"),
        (edited("schema", value=2.5), "schema is 2.5"),
        (edited("rounds", value=3), "rounds is 3"),
        (
            edited("rounds", 1, "scores", "accuracy", value="x"),
            r"rounds\.1\.scores\.accuracy is 'x'",
        ),
        (edited("rounds", 1, "scores", value=None), r"rounds\.1\.scores is None"),
        (edited("rounds", 1, "spread", value=[0, {}]), r"rounds\.1\.spread\.1 is \{\}"),
        (edited("rounds", 1, "noise", value=-0.1), r"rounds\.1\.noise is -0\.1"),
        (edited("task", value=None), "task is None"),
        (edited("task", "inputs", value=[]), r"task\.inputs is \[\]"),
        (edited("task", "inputs", 0, "shape", value=[8, -1]), r"task\.inputs\.0\.shape\.1 is -1"),
        (edited("task", "inputs", 0, "divide_by", value=0), r"task\.inputs\.0\.divide_by is 0"),
        (edited("metric", "larger_is_better", value="yes"), r"metric\.larger_is_better is 'yes'"),
        (edited("evaluated_by", value="nobody"), "evaluated_by is 'nobody'"),
        (edited("final", "failed", value=[{"file": "a"}]), r"final\.failed\.0"),
        (
            edited("rounds", 0, "clients", 2, "uplink", "payload_bytes", value=-1),
            r"rounds\.0\.clients\.2\.uplink\.payload_bytes is -1",
        ),
        (edited("final", "totals", value=None), r"final\.totals is None"),
        (edited("run", value=None), "run is None"),
        (edited("final", "scores", "loss", value=10**400), r"final\.scores\.loss is 1"),
        (edited("float32_bytes", value=True), "float32_bytes is True"),
        (edited("float32_bytes", value=0), "float32_bytes is 0"),
    ],
)
def test_wrong_metrics(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(ReportError, match=rf"metrics\.json: {message}.*docs/metrics\.md"):
        render(write(tmp_path, data))


def test_no_metrics(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"metrics\.json: no such file; give the output folder"):
        render(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ReportError, match=r"metrics\.json: not readable JSON"):
        render(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_label": 10}, "image_label 10 is not a class"),
        ({"image": np.zeros((8, 8, 2), np.uint8)}, "1 or 3 channels"),
        ({"samples": np.zeros((9, 1, 8, 8, 1), np.uint8)}, "9 classes of 10"),
        ({"predictions": np.zeros((2, 10))}, r"predictions has shape \(2, 10\)"),
        ({"class_names": np.array([{}])}, "pickle"),
    ],
)
def test_wrong_pictures(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, metrics(), {**pictures(), **change})
    with pytest.raises(ReportError, match=rf"pictures\.npz: .*{message}.*remove the file"):
        render(tmp_path)


def test_broken_pictures(tmp_path: Path) -> None:
    write(tmp_path, metrics())
    (tmp_path / "pictures.npz").write_bytes(b"no zip")
    with pytest.raises(ReportError, match=r"pictures\.npz: .*remove the file"):
        render(tmp_path)


def test_metrics_doc_names_every_key() -> None:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()

    def keys(node: Any) -> set[str]:
        if isinstance(node, dict):
            return set(node).union(*map(keys, node.values()))
        return set().union(*map(keys, node)) if isinstance(node, list) else set()

    data = metrics()
    data["settings"] = data["machine"] = {}
    for key in (keys(data) | set(pictures())) - {"nested"}:
        assert f"`{key}`" in text


def printed(table: Any) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
    return console.export_text()


def test_round_table_fits_80_columns() -> None:
    data = metrics(50, 30)
    for entry in data["rounds"]:
        entry["seconds"] = 12345.6
        for update in entry["clients"]:
            update["uplink"] = traffic(999_900)
    text = printed(round_table(data))
    assert "…" not in text
    assert "999.9 kB" in text
    assert "50/52" in text
    assert len([line for line in text.splitlines() if "%" in line]) == 31


def test_models_table() -> None:
    text = printed(models_table(metrics()))
    assert "model_int8.tflite" in text
    assert "235.4 kB" in text
    assert "23.4 \N{MICRO SIGN}s" in text
    assert "53.2 MB" in text
    data = metrics()
    for key in ("latency_ms", "latency_p95_ms", "memory_bytes", "idle_memory_bytes"):
        data["final"]["models"][0][key] = None
    assert summary.NONE in printed(models_table(data))


def test_the_card_says_what_the_models_are(tmp_path: Path) -> None:
    data = metrics()
    data["settings"] |= {"model": "cnn", "optimize": "prune+qat", "epochs": 5}
    data["machine"] = {"architecture": "aarch64", "cores": "4"}
    render(write(tmp_path, data))
    card = (tmp_path / "model_card.md").read_text("utf-8")
    assert card == model_card(parse_metrics(data))
    for text in (
        "| `model_int8.tflite` | uint8 | 235,392 | 227,749 | 78.00 % | 23.4 µs | 1.3 ms | 53.2 MB "
        "| 40.9 MB |",
        "8 x 8 x 1 (height, width, channels)",
        "which is the byte itself",
        "9. class 9",
        "300 examples of 3 clients",
        "2, of 5 local epochs",
        "prune+qat; 50.00 % of the prunable weights are zero",
        r"subsample(0.03) \| sign up",
        "`" + "cd" * 32 + "`",
        "200 images of the training split",
        "one thread of aarch64 (4 cores), with ai-edge-litert 2.3.0",
        "featherfed predict model_int8.tflite photo.jpg",
        "Not stated.",
    ):
        assert text in card, text


def test_rounds_that_were_not_adopted_are_told(tmp_path: Path) -> None:
    data = metrics()
    data["rounds"][1]["discarded"] = "its loss on the test set is nan"
    page = rendered(write(tmp_path, data))
    assert "stayed what it was before: 2 (its loss on the test set is nan)" in page.text
    assert "not adopted: 2 (its loss on the test set is nan)" in model_card(parse_metrics(data))
    assert "not adopted" not in model_card(parse_metrics(metrics()))


def test_the_card_is_made_of_what_little_there_is() -> None:
    data = metrics(0, 0)
    for key in ("settings", "machine", "started"):
        del data[key]
    model = {"file": "a.tflite", "kind": "float32", "bytes": 10}
    data["final"] |= {"models": [model], "num_calibration_examples": None}
    card = model_card(parse_metrics(data))
    assert "| `a.tflite` | – | 10 | – | – | – | – | – | – |" in card
    assert "training split" not in card
    for change in ({"final": None}, {"final": {**data["final"], "models": []}}):
        with pytest.raises(ReportError, match="when the run has finished"):
            model_card(parse_metrics({**data, **change}))


def test_names_cannot_become_markup_in_the_card() -> None:
    data = metrics(1)
    hostile = "<img src=x>\n# `a` | [b](c) *d*"
    data.update(run=hostile, dataset=hostile)
    data["task"]["target"]["class_names"] = [hostile]
    data["settings"] = {"uplink": hostile}
    data["final"]["models"][0].update(file=hostile, runtime=hostile)
    card = model_card(parse_metrics(data))
    escaped = r"\<img src=x\>�\# \`a\` \| \[b\](c) \*d\*"
    assert f"0. {escaped}" in card
    assert card.count("<img") - card.count(r"\<img") == card.count(
        "`<img src=x>�# 'a' / [b](c) *d*`"
    )
    assert "featherfed predict _img_src_x___" in card
    (row,) = (line for line in card.splitlines() if line.startswith("| `"))
    assert row.replace(r"\|", "").count("|") == 10


def test_flows() -> None:
    run = parse_metrics(metrics())
    up, down = summary.run_flows(run)
    assert (up.count, up.payload, up.sent) == (6, 868, 868 + 140 + 120 + 10)
    assert (down.count, down.total.payload) == (9, 6 * 900_000 + 3 * 4000)
    assert up.ratio(run.float32_bytes) == pytest.approx(900136 / 868)
    only, _ = summary.run_flows(run, "client-1")
    assert only.count == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, summary.NONE),
        (0, "0 B"),
        (9_999.4, "9,999 B"),
        (9_999.6, "10.0 kB"),
        (999_960, "1.0 MB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_bytes_text(value: float | None, text: str) -> None:
    assert summary.bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, summary.NONE),
        (0.0023, "2.3 µs"),
        (0.1173, "117 µs"),
        (1.26, "1.3 ms"),
        (250, "250 ms"),
    ],
)
def test_latency_text(value: float | None, text: str) -> None:
    assert summary.latency_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, summary.NONE), (93.14, "93.1 s"), (700, "11 min 40 s"), (7260, "2 h 1 min")],
)
def test_seconds_text(value: float | None, text: str) -> None:
    assert summary.seconds_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, summary.NONE), (0, "0"), (0.0123, "0.012"), (4.2, "4.2"), (1038.2, "1,038")],
)
def test_times_text(value: float | None, text: str) -> None:
    assert summary.times_text(value) == text


def test_the_plot_of_clients_says_whether_it_shows_all() -> None:
    data = metrics(clients=20)
    (every,) = clients_charts(parse_metrics(data))
    for round_ in data["rounds"]:
        for client in round_["clients"][3:]:
            client["scores"] = None
    (some,) = clients_charts(parse_metrics(data))
    assert every.title.startswith("Every client after its")
    assert some.title.startswith("Some clients after their")
    assert len([mark for mark in every.marks if isinstance(mark, Dots)]) == 20
    few = [mark for mark in some.marks if isinstance(mark, Dots)]
    assert len({mark.color for mark in few}) == 3, "and each in a colour of its own"
    assert clients_charts(parse_metrics(metrics(accuracy=None))) == []


# --- tasks other than pictures


def test_a_forecast_that_clients_evaluate(tmp_path: Path) -> None:
    data = of_task(FORECAST, clients=4, rounds=5)
    for update in data["rounds"][-1]["clients"]:
        if update["client"] == "client-2":
            update.update(before={"mae": 0.987654, "loss": 1.5}, after={"mae": 12345.678})
    page = rendered(write(tmp_path, data, pictures()))
    assert page.loads == [], "no pictures, whatever lies there"
    assert {"score-rounds", "own-before", "own-after", "bytes", "timeline"} <= set(page.charts)
    for text in ("Final MAE", "on examples that clients held out", "R²", "0.9877", "12,345.68"):
        assert text in page.text
    assert "accuracy" not in page.text.lower()
    assert "points" not in page.text
    assert "model_int8.tflite" in page.text
    card = (tmp_path / "model_card.md").read_text("utf-8")
    for text in (
        "# demo: 6 numbers",
        "- Measured on examples that clients held out: MAE ",
        "| history | float32 | 24 x 3 | numbers in their own units; the model sees them stand",
        "| hour | int32 | one value | tokens, 0 to 23 (a vocabulary of 24) |",
        "`model_int8.tflite`, history: (value - mean) / deviation / 0.05 + -3",
        "Numbers, 6, standardised in the file, in the units of the data from Predictor",
        "come from random numbers, since the server has no data",
        "Their answers were not measured: the server has no test examples.",
        "from featherfed.models.tflite import Predictor",
    ):
        assert text in card, text
    for word in ("accuracy", "image", "picture", "label", "Classifier"):
        assert word not in card.lower(), word


def test_a_page_before_the_newest_round_is_scored(tmp_path: Path) -> None:
    data = of_task(FORECAST, rounds=3, final=False)
    assert data["rounds"][-1]["scores"]["mae"] is None
    page = rendered(write(tmp_path, data))
    assert "MAE so far" in page.text
    assert "after round 2, on examples" in page.text
    first = of_task(FORECAST, rounds=1, final=False)
    assert "MAE so far" not in rendered(write(tmp_path, first)).text
    assert summary.NONE in printed(round_table(first))


def test_labels_in_percent_and_all_metrics_in_a_table(tmp_path: Path) -> None:
    data = of_task(TAGS, "server", clients=8, rounds=4)
    data["final"]["scores"] = {"loss": 0.2, "f1": 0.8765, "auc": None}
    page = rendered(write(tmp_path, data))
    assert "Final F1" in page.text
    assert "87.65 %" in page.text
    assert "All metrics" in page.text
    assert "AUC" in page.text
    card = (tmp_path / "model_card.md").read_text("utf-8")
    assert "# demo: which of 3 labels apply" in card
    assert "test examples of digits: F1 87.65 %, Loss 0.2000\n" in card
    assert "2. sits" in card
    assert "picture" not in card


def test_an_autoencoder(tmp_path: Path) -> None:
    page = rendered(write(tmp_path, of_task(ANOMALY, rounds=3)))
    assert "Final MSE" in page.text
    assert "All metrics" not in page.text, "there is but one"
    card = (tmp_path / "model_card.md").read_text("utf-8")
    assert "# demo: frame itself again, as an autoencoder gives it" in card
    assert "frame: byte / 127.5 / 0.05 + -3)" in card
    assert "Probabilities" not in card


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("evaluated_by", ["server", "clients", None])
def test_the_card_has_code_that_runs(
    name: str, evaluated_by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS[name]

    class Stand:
        """Answers with zeros, if the arrays are the task's."""

        def __init__(self, path: str) -> None:
            self.task = task

        def predict(self, *inputs: Values) -> Values:
            count = task.check_inputs(inputs)
            return np.zeros((count, *task.output_shapes()[-1]), np.float32)

    monkeypatch.setattr(tflite, "Predictor", Stand)
    data = of_task(task, evaluated_by)
    (code,) = re.findall(r"```python\n(.*?)```", model_card(parse_metrics(data)), re.DOTALL)
    exec(code, {})
    assert "mae" in printed(round_table(data)) or task.target.kind is not TargetKind.VALUES
    printed(models_table(data))


@pytest.mark.parametrize("task", [FORECAST, WORDS], ids=["values", "words"])
def test_nobody_evaluates(tmp_path: Path, task: Task) -> None:
    page = rendered(write(tmp_path, of_task(task, None)))
    assert "nobody has measured it" in page.text
    assert "- Measured: not at all" in (tmp_path / "model_card.md").read_text("utf-8")
    run = parse_metrics(of_task(task, None))
    assert learning_charts(run) == clients_charts(run) == own_charts(run) == []


def test_a_missing_file_is_a_warning_everywhere(tmp_path: Path) -> None:
    data = metrics()
    data["final"]["failed"] = [{"file": "model_float16.tflite", "why": "no [such] <op>"}]
    page = rendered(write(tmp_path, data))
    assert "model_float16.tflite could not be made. no [such] <op>" in page.text
    card = (tmp_path / "model_card.md").read_text("utf-8")
    assert r"**Warning:** `model_float16.tflite` could not be made: no \[such\] \<op\>" in card
    assert "not made: model_float16.tflite: no [such] <op>" in printed(models_table(data))


def test_hostile_names_of_a_task(tmp_path: Path) -> None:
    data = of_task(FORECAST)
    hostile = "x`\n```<script>|"
    data["task"]["inputs"][0].update(name=hostile, dtype=hostile)
    data["task"]["metrics"][1] = hostile
    data["task"].update(loss=hostile)
    data["task"]["target"]["kind"] = hostile
    data["metric"]["name"] = hostile
    rendered(write(tmp_path, data))
    card = (tmp_path / "model_card.md").read_text("utf-8")
    assert card.count("```") == 4
    assert "<script>" not in re.sub(r"\\<script\\>|`[^`\n]*`", "", card)


def test_the_plot_over_bytes_ends_with_what_brought_the_newest_version() -> None:
    run = parse_metrics(metrics(rounds=3))
    rounds, each = [number for number, _ in summary.spent(run)], summary.spent(run)[0][1]
    assert rounds == [1, 2, 3]
    assert each == 900_000 + 868 + 900_000
    going = parse_metrics(metrics(rounds=3, final=False))
    assert [number for number, _ in summary.spent(going)] == [1, 2], "the last is not delivered"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.5, "50.00 %"),
        ("top5", 0.5, "50.00 %"),
        ("r2", -0.5, "-0.5000"),
        ("mae", 1234.5678, "1,234.57"),
        ("mse", 0.0000123, "1.23e-05"),
        ("perplexity", 1e300, "1e+300"),
        ("rmse", 0.0, "0.0000"),
        ("loss", None, summary.NONE),
    ],
)
def test_values_are_written_in_their_unit(name: str, value: float | None, text: str) -> None:
    assert metric_texts.value_text(name, value) == text
