"""What a finished run leaves, whatever of it cannot be made, and what is said before it begins."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")

import tf_keras
from support.small_runs import SHAPE, SmallRun, windows

from featherfed.api.artifacts import measure_models
from featherfed.api.build import Served
from featherfed.api.export import export_version
from featherfed.api.failures import Failures
from featherfed.api.model_check import check_first_version, warn_of_missing_files
from featherfed.datasets.dataset import Dataset
from featherfed.models.export import NO_RANGES, load_keras
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import TfliteModel
from featherfed.server.errors import ServerError
from featherfed.tasks.task import Input, Target, TargetKind, Task, image_task

L = tf_keras.layers
TASK = Task(
    (Input("motion", "float32", SHAPE),), Target(TargetKind.CLASS, (), ("still", "walking"))
)


def model(*layers: Any, shape: tuple[int, ...] = SHAPE) -> Any:
    return tf_keras.Sequential([L.Input(shape), *layers])


def area() -> Any:
    return L.UpSampling2D(interpolation="area")


@pytest.fixture
def small_run(tmp_path: Path) -> Iterator[Callable[..., SmallRun]]:
    made: list[SmallRun] = []

    def make(keras: Any, **sections: Any) -> SmallRun:
        made.append(SmallRun(tmp_path, keras, **sections))
        return made[-1]

    yield make
    for one in made:
        one.processes.end()


@pytest.mark.slow  # the converter takes long to fail
@pytest.mark.parametrize(
    "layer",
    # The converter takes longer to fail at the second, and says more.
    [area, pytest.param(lambda: L.ConvLSTM1D(2, 2), marks=pytest.mark.slow, id="ConvLSTM1D")],
)
def test_a_model_that_cannot_be_converted_leaves_its_keras_file(
    small_run: Callable[..., SmallRun], layer: Callable[[], Any]
) -> None:
    run = small_run(model(L.Reshape((6, 3, 1)), layer(), L.Flatten(), L.Dense(2, "softmax")))
    run.serve()
    log = run.log()
    for kind in ("float32", "float16", "dynamic", "int8"):
        assert f"WARNING model_{kind}.tflite will not be made: TFLite has no {kind} form" in log
    assert "only the Keras file will be left" in log
    assert "no LiteRT clients in this run: " in log
    run.join("a", windows(40, 1), "--runtime", "keras")
    metrics = run.finish("a")
    failed = {row["file"]: row["why"] for row in metrics["final"]["failed"]}
    assert {f"model_{k}.tflite" for k in ("float32", "float16", "dynamic", "int8")} == set(failed)
    assert metrics["final"]["models"] == []
    assert metrics["final"]["scores"]["accuracy"] is not None
    load_keras(run.output / "model.keras")
    assert "could not be made" in (run.output / "report.html").read_text("utf-8")
    for line in run.log().splitlines():
        assert len(line) < 1000, line
        assert line[:2].isdigit(), line


@pytest.mark.slow  # test_table_runs does it with real commands
def test_without_data_on_the_server_a_client_measures_and_evaluates_int8(
    small_run: Callable[..., SmallRun],
) -> None:
    """A plain GRU and one output for two classes, which once crashed, by LiteRT."""
    run = small_run(
        model(L.GRU(4), L.Dense(1, "sigmoid")),
        training={"epochs": 2, "batch_size": 8, "learning_rate": 0.1,
                  "loss": "binary_crossentropy"},
    )  # fmt: skip
    run.serve()
    assert "model_int8.tflite will be made from ranges that clients measure" in run.log()
    run.join("a", windows(60, 1), "--runtime", "litert")
    metrics = run.finish("a")
    assert metrics["final"]["failed"] == []
    kinds = {row["kind"]: row for row in metrics["final"]["models"]}
    assert set(kinds) == {"float32", "float16", "dynamic", "int8"}
    assert all(row["latency_ms"] > 0 for row in kinds.values())
    assert kinds["int8"]["evaluated_by"] == "clients"
    assert kinds["int8"]["num_examples"] == 6
    assert metrics["final"]["num_calibration_examples"] == 54
    made = TfliteModel(run.output / "model_float32.tflite")
    assert made.predict([windows(4, 2)["motion"]]).shape == (4, 1)
    card = (run.output / "model_card.md").read_text("utf-8")
    assert "on 6 examples that clients hold out of training" in card
    assert "from 54 examples that clients train on, which measured them" in card
    exported = run.folder / "exported"
    export_version(run.output, None, False, exported, ["int8"])
    assert (exported / "model_int8.tflite").read_bytes() == (
        run.output / "model_int8.tflite"
    ).read_bytes()
    told = json.loads((exported / "metrics.json").read_text("utf-8"))["final"]
    assert told["models"][0]["scores"] == kinds["int8"]["scores"]
    assert told["num_calibration_examples"] == 54


@pytest.mark.slow
def test_without_clients_that_hold_out_int8_is_missing(
    small_run: Callable[..., SmallRun],
) -> None:
    run = small_run(model(L.Flatten(), L.Dense(2, "softmax")), evaluation={"holdout": 0})
    run.serve()
    assert f"WARNING model_int8.tflite will not be made: {NO_RANGES}" in run.log()
    run.join("a", windows(60, 1), "--runtime", "keras")
    metrics = run.finish("a")
    assert metrics["final"]["failed"] == [{"file": "model_int8.tflite", "why": NO_RANGES}]
    assert "model_int8" in (run.output / "model_card.md").read_text("utf-8")


def test_verdicts_are_remembered(caplog: pytest.LogCaptureFixture) -> None:
    served = Served(FederatedModel(model(L.GRU(3), L.Dense(2, "softmax")), None, TASK))
    caplog.set_level("INFO", "featherfed")

    def said() -> list[str]:
        caplog.clear()
        warn_of_missing_files(served, clients_measure=False)
        return [r.getMessage() for r in caplog.records if r.name.startswith("featherfed")]

    missing = f"model_int8.tflite will not be made: {NO_RANGES}"
    assert said() == ["trying to convert the model, once", missing]
    assert said() == [missing]


def test_version_0_must_have_finite_scores() -> None:
    federated = FederatedModel(model(L.Flatten(), L.Dense(9), L.Dense(2, "softmax")), None, TASK)
    data = Dataset((np.full((10, *SHAPE), 3e38, np.float32),), windows(10, 0)["y"])
    with pytest.raises(ServerError, match=r"no finite scores on the evaluation data \(loss nan"):
        check_first_version(Served(federated, data), 0)
    check_first_version(Served(federated), 0)


def test_windows_are_no_pictures(small_run: Callable[..., SmallRun]) -> None:
    """Five windows of three axes, for a model of pictures."""
    run = small_run(model(L.Flatten(), L.Dense(2, "softmax"), shape=(8, 8, 1)))
    run.processes.start("wrong", "serve", "run.toml")
    assert run.processes.wait("wrong") == 1
    assert (
        "featherfed: the model takes [8, 8, 1], the task gives [6, 3]; change the model's input"
        in run.log("wrong")
    )
    assert "Traceback" not in run.log("wrong")
    five = Dataset((np.ones((5, 6, 3), np.uint8),), windows(5, 0)["y"])
    with pytest.raises(ValueError, match=r"'image'.*\[6, 3"):
        five.fit(image_task((8, 8, 1), ("a", "b")))


def test_a_file_that_cannot_be_measured_stays(tmp_path: Path) -> None:
    (tmp_path / "model_float32.tflite").write_bytes(b"no model at all")
    failures = Failures()
    (row,) = measure_models([tmp_path / "model_float32.tflite"], None, failures)
    assert (row["kind"], row["bytes"]) == ("float32", 15)
    assert [r["file"] for r in failures.rows] == ["a measurement of model_float32.tflite"]


def test_what_the_disk_does_not_take_is_tried_again() -> None:
    failures = Failures()
    with pytest.raises(OSError, match="full"), failures.noted("report.html"):
        raise OSError("full")
    with failures.noted("report.html"):
        raise RuntimeError("a bug")
    assert failures.rows == [{"file": "report.html", "why": "a bug"}]


def test_pictures_show_classes_without_an_example() -> None:
    from featherfed.api.artifacts import _samples
    from featherfed.tasks.scoring import both_classes

    images = np.zeros((3, 4, 4, 1), np.uint8)
    samples = _samples(Dataset((images,), np.array([0, 0, 2]), ("a", "b", "c")))
    assert samples.shape == (3, 1, 4, 4, 1)
    assert [int(each.max()) for each in samples] == [0, 255, 0]
    np.testing.assert_allclose(both_classes(np.array([[0.25]])), [[0.75, 0.25]])
