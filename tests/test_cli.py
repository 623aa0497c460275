"""The command line: a small demo from start to end, and what it says to bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.processes import run

from featherfed.cli.main import app
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.datasets.sources import load_train_test


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded default, with fewer rounds and clients."""
    directory = tmp_path_factory.mktemp("demo")
    done = run("demo", "--clients", "2", "--rounds", "4", "--output", "out", cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clients train with LiteRT\n" in done.stdout
    assert "report: out/report.html" in done.stdout
    return directory / "out"


@pytest.fixture(scope="module")
def metrics(demo: Path) -> Any:
    return json.loads((demo / "metrics.json").read_text("utf-8"))


def test_the_demo_leaves_everything(demo: Path) -> None:
    names = {path.name for path in demo.iterdir()}
    kinds = {f"model_{kind}.tflite" for kind in ("float32", "float16", "dynamic", "int8")}
    assert (
        kinds | {"metrics.json", "model_card.md", "report.html", "model.keras", "pictures.npz"}
        <= names
    )
    plots = {path.name for path in (demo / "plots").iterdir()}
    assert {"score-rounds.svg", "clients.svg", "bytes.svg", "timeline.svg"} <= plots


def test_the_server_of_the_demo_logs_nothing_but_its_own_lines(demo: Path) -> None:
    for line in (demo / "server.log").read_text("utf-8").splitlines():
        assert re.match(r"\d\d:\d\d:\d\d INFO ", line), line


def test_the_demo_learns(metrics: Any) -> None:
    assert metrics["final"]["scores"]["accuracy"] > 0.9
    for model in metrics["final"]["models"]:
        assert abs(model["scores"]["accuracy"] - metrics["final"]["scores"]["accuracy"]) < 0.02, (
            model["kind"]
        )
        assert 0 < model["gzip_bytes"] < model["bytes"]


def test_every_byte_of_the_demo_is_told(metrics: Any) -> None:
    assert metrics["num_parameters"] == 28_426
    assert metrics["float32_bytes"] == 4 * 28_426
    for number, round_ in enumerate(metrics["rounds"], 1):
        assert round_["round"] == number
        assert [c["client"] for c in round_["clients"]] == ["client-0", "client-1"]
        for client in round_["clients"]:
            assert client["num_examples"] in (718, 719)
            assert 0 < client["scores"]["accuracy"] <= 1
            up, down = client["uplink"], client["downlink"]
            assert 0 < up["payload_bytes"] < up["message_bytes"] < metrics["float32_bytes"] / 4
            assert down["payload_bytes"] < down["message_bytes"] < metrics["float32_bytes"] / 4
            assert (down["payload_bytes"] == 0) == (number == 1), "version 0 costs a seed"
    delivered = [c["downlink"]["payload_bytes"] for c in metrics["final"]["clients"]]
    assert len(delivered) == 2
    assert all(delivered)
    totals = metrics["final"]["totals"]
    told = sum(c["uplink"]["message_bytes"] for r in metrics["rounds"] for c in r["clients"])
    assert totals["uplink"]["message_bytes"] == told


def test_clients_hold_the_final_model(demo: Path, metrics: Any) -> None:
    for number in range(2):
        with np.load(demo / "clients" / f"client-{number}" / "state" / "model.npz") as held:
            tensors = [held[name] for name in sorted(held.files) if name.startswith("weights/")]
        assert weights_digest(tensors).hex() == metrics["final"]["digest"]


def test_predict_and_report_work_on_what_the_demo_leaves(demo: Path) -> None:
    predicted = run("predict", "model_int8.tflite", cwd=demo)
    assert predicted.returncode == 0, predicted.stderr
    assert "a sample of 7" in predicted.stdout
    _, test = load_train_test("digits")
    np.save(demo / "three.npy", test.images[:3])
    named = run("predict", "model_float32.tflite", "three.npy", cwd=demo)
    assert named.stdout.count("three.npy") == 3
    told = run("report", str(demo), cwd=demo)
    assert told.returncode == 0, told.stderr
    assert "float32: 113.7 kB" in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prune", "cluster", "qat", "prune+qat"])
def test_every_optimisation_runs_to_the_end(tmp_path: Path, method: str) -> None:
    done = run(
        "demo", "--clients", "2", "--rounds", "6", "--epochs", "4", "--optimize", method,
        "--output", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    final = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))["final"]
    assert final["scores"]["accuracy"] > 0.8
    if "prune" in method:
        assert abs(final["sparsity"] - 0.8) < 0.001
    for model in final["models"]:
        assert model["scores"]["accuracy"] > 0.8, model["kind"]


@pytest.mark.slow
def test_a_mixed_demo_learns(tmp_path: Path) -> None:
    done = run(
        "demo", "--clients", "3", "--rounds", "3", "--runtime", "mixed", "--output", "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    runtimes = [c["runtime"] for c in metrics["rounds"][-1]["clients"]]
    assert runtimes == ["keras", "litert", "keras"]
    assert metrics["final"]["scores"]["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--uplink", "zstd | quantize(8)"), "must come before zstd"),
        (("demo", "--downlink", "zpd"), "unknown stage 'zpd'"),
        (("demo", "--optimize", "shrink"), "optimization.method"),
        (("demo", "--partition", "random"), "use iid or dirichlet:ALPHA"),
        (("demo", "--dataset", "nowhere"), "nowhere"),
        (
            ("demo", "--model", "vgg"),
            "no model 'vgg'; choose cnn, mlp, mobile, gru, or your own: a function (module",
        ),
        (("demo", "--output", "full"), "full is not empty and holds no demo"),
        (("serve", "nowhere.toml"), "cannot read run file nowhere.toml"),
        (("serve", "bad.toml"), "trainig: unknown key; did you mean 'training'?"),
        (("join", "127.0.0.1:1", "--data", "nowhere.npz"), "nowhere.npz"),
        (("join", "127.0.0.1:1", "--data", "os:nothing"), "nothing"),
        (("join", "127.0.0.1:1", "--data", "data.npz", "--give-up-after", "0"), "127.0.0.1:1"),
        (("report", "."), "metrics.json: no such file"),
        (("predict", "nowhere.tflite"), "no model file nowhere.tflite"),
        (("predict", "bad.toml", "data.npz"), "bad.toml is not a model to use"),
    ],
)
def test_bad_input_is_one_plain_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    """In this process, which has imported TensorFlow already; the next test starts one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("trainig = 1", "utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "full" / "run.toml").touch()
    load_train_test("digits")[1].save(tmp_path / "data.npz")
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1, done.stderr
    assert message in done.stderr
    assert (tmp_path / "full" / "mine.txt").exists()


def test_a_process_with_bad_input_ends_with_1(tmp_path: Path) -> None:
    done = run("serve", "nowhere.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot read run file nowhere.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_data_set_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featherfed.datasets import sources
    from featherfed.datasets.dataset import DatasetError

    monkeypatch.setattr(sources, "fashion_mnist_folders", lambda: [tmp_path])
    with pytest.raises(DatasetError, match="apt-get install dataset-fashion-mnist"):
        load_train_test("fashion-mnist")
