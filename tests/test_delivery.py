"""What a run delivers: files that are measured, name their classes and classify any picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import run

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")

from PIL import Image

from featherfed.api.artifacts import measure_models
from featherfed.api.build import calibration_set
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.sources import load_train_test
from featherfed.models import tflite, zoo
from featherfed.models.errors import ModelError
from featherfed.models.export import export
from featherfed.models.images import load_images
from featherfed.models.measure import measure
from featherfed.models.optimized import FederatedModel, Method, Optimization
from featherfed.models.tflite import (
    Classifier,
    TfliteModel,
    evaluate_tflite,
    read_labels,
    with_labels,
)
from featherfed.report.card import model_card
from featherfed.report.schema import parse_metrics

ROOT = Path(__file__).parent.parent
KINDS = ("float32", "float16", "dynamic", "int8")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "Ångström | 8", "nine")
LITERT = tflite._interpreter_class() is not tflite._tensorflow_interpreter


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Dataset]:
    return load_train_test("digits")


@pytest.fixture(scope="module")
def exported(
    data: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The files of a trained model by kind."""
    train, _ = data
    model = FederatedModel(zoo.build("mlp", train.input_shape, 10))
    model.fit(train.images, train.labels, epochs=8, learning_rate=0.1)
    folder = tmp_path_factory.mktemp("exported")
    paths = export(model, folder, calibration_set(train).images, NAMES)
    return dict(zip(KINDS, paths, strict=False))


def refused(message: str) -> Any:
    return pytest.raises(ModelError, match=message)


# --- what is measured


def test_a_file_is_measured_in_a_process_without_tensorflow(
    exported: dict[str, Path], data: tuple[Dataset, Dataset]
) -> None:
    _, test = data
    rows = measure_models([*exported.values(), Path("model.keras")], test)
    assert [row["kind"] for row in rows] == list(KINDS)
    for row in rows:
        path = exported[row["kind"]]
        assert row["bytes"] == path.stat().st_size > row["gzip_bytes"] > 1000
        assert row["accuracy"] == evaluate_tflite(path, test.images, test.labels) > 0.9
        assert row["num_examples"] == 360
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"] < 1000
        if LITERT and sys.platform == "linux":
            # Not the hundreds of megabytes of the process that asks.
            assert 20e6 < row["idle_memory_bytes"] <= row["memory_bytes"] < 150e6
            assert row["runtime"].startswith("ai-edge-litert ")
        else:
            assert row["memory_bytes"] is row["idle_memory_bytes"] is None
    floats, integers = rows[0]["input"], rows[-1]["input"]
    assert floats == {"dtype": "float32", "scale": None, "zero_point": None}
    assert integers == {"dtype": "uint8", "scale": pytest.approx(1 / 255), "zero_point": 0}


def test_what_cannot_be_measured_says_why(exported: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 9, 9, 1), np.uint8), labels=[0, 1])
    with refused(r"expected uint8 images \[N, 8, 8, 1\]"):
        measure(exported["int8"], tmp_path / "other.npz")
    with refused("no model file"):
        measure(tmp_path / "none.tflite", tmp_path / "other.npz")
    with refused("No such file"):
        measure(exported["int8"], tmp_path / "none.npz")
    command = [sys.executable, "-m", "featherfed.models.measure"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: ")


def test_int8_is_calibrated_on_examples_that_judge_nothing(data: tuple[Dataset, Dataset]) -> None:
    train, test = data
    chosen = calibration_set(train)
    assert len(chosen) == 200
    assert set(chosen.labels) == set(range(10))
    seen = {image.tobytes() for image in chosen.images}
    assert not seen & {image.tobytes() for image in test.images}
    assert len(calibration_set(train.take(range(7)))) == 7


@pytest.mark.parametrize("method", list(Method))
def test_every_kind_of_every_method_is_its_own_and_keeps_the_accuracy(
    method: Method, data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    train, test = data
    model = FederatedModel(zoo.build("mlp", train.input_shape, 10), Optimization(method))
    for sparsity in (0.0, 0.7 * method.prunes):
        model.fit(train.images, train.labels, epochs=5, learning_rate=0.1, sparsity=sparsity)
    *paths, _ = export(model, tmp_path, calibration_set(train).images, test.class_names)
    found = {
        kind: TfliteModel(path).predict(test.images)
        for kind, path in zip(KINDS, paths, strict=True)
    }
    sizes = [path.stat().st_size for path in paths]
    # Of float32's size: a half, and a quarter and what describes it (a float16 of a
    # quantization-aware model was once the dynamic one under another name).
    assert [size / sizes[0] for size in sizes[1:3]] == [
        pytest.approx(0.53, abs=0.05),
        pytest.approx(0.34, abs=0.05),
    ]
    assert len({path.read_bytes() for path in paths}) == 4
    # One of the 360 images is 0.28 points.
    reference = np.mean(found["float32"].argmax(1) == test.labels)
    assert reference > 0.9
    for kind, probabilities in found.items():
        accuracy = np.mean(probabilities.argmax(1) == test.labels)
        assert abs(accuracy - reference) < 0.015, kind


# --- class names


def test_the_class_names_travel_in_the_file(exported: dict[str, Path], tmp_path: Path) -> None:
    for path in exported.values():
        assert read_labels(path) == NAMES
        assert Classifier(path).class_names == NAMES
    with zipfile.ZipFile(exported["int8"]) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)
    bare = tmp_path / "bare.tflite"
    content = exported["int8"].read_bytes()
    bare.write_bytes(content[: content.index(b"PK\3\4")])
    assert read_labels(bare) == ()
    assert Classifier(bare).class_names == tuple("0123456789")
    assert with_labels(bare.read_bytes(), NAMES) == content, "equal names, equal bytes"


def test_class_names_that_do_not_fit(exported: dict[str, Path], tmp_path: Path) -> None:
    content = exported["int8"].read_bytes()
    bare = content[: content.index(b"PK\3\4")]
    path = tmp_path / "model.tflite"
    path.write_bytes(with_labels(bare, NAMES[:3]))
    with refused("names 3 classes but tells 10 apart"):
        Classifier(path)
    path.write_bytes(content.replace("Ångström".encode(), b"Angstrom 8"))
    with refused("class names are damaged"):
        Classifier(path)
    path.write_bytes(with_labels(bare, ["a\r\x1b[2Jb", "x" * 200]))
    assert read_labels(path) == (r"a\r\x1b[2Jb", "x" * 100 + "... (100 characters more)")
    path.write_bytes(with_labels(bare, ["x" * (1 << 21)]))
    with refused("labels.txt is larger"):
        read_labels(path)
    with pytest.raises(ValueError, match="one line"):
        with_labels(bare, ["a\nb"])


# --- pictures, arrays, frames


def test_a_classifier_takes_files_and_arrays(
    exported: dict[str, Path], data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    _, test = data
    classifier = Classifier(exported["float32"])
    expected = TfliteModel(exported["float32"]).predict(test.images[:3])
    found = classifier.classify_all(test.images[:3])
    for row, pairs in zip(expected, found, strict=True):
        assert [name for name, _ in pairs] == [NAMES[i] for i in np.argsort(-row, kind="stable")]
        assert [p for _, p in pairs] == sorted((float(p) for p in row), reverse=True)
    one = test.images[0]
    Image.fromarray(one[..., 0]).save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", one[..., 0])
    np.savez(tmp_path / "one.npz", images=one[None])
    for source in (one, one[None], one[..., 0], one / 255, *sorted(tmp_path.glob("one.*"))):
        assert classifier.classify(source) == found[0]
    with refused("3 images where one was expected; use classify_all"):
        classifier.classify(test.images[:3])
    assert classifier.classify_all(test.images[:0]) == []


def test_a_frame_is_cut_to_the_middle_resized_and_made_grey(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (48, 64, 3), np.uint8)
    cut = Image.fromarray(frame[:, 8:56])
    expected = np.asarray(cut.resize((8, 8), Image.Resampling.BILINEAR), np.int64)
    colour = load_images(frame, (8, 8, 3))
    assert colour.shape == (1, 8, 8, 3)
    assert colour.dtype == np.uint8
    assert np.abs(colour[0] - expected).max() <= 1
    grey = load_images(frame, (8, 8, 1))[0, ..., 0]
    assert np.abs(grey - expected @ [0.299, 0.587, 0.114]).max() <= 1.5
    tall = load_images(frame.transpose(1, 0, 2), (8, 8, 1))[0, ..., 0]
    np.testing.assert_array_equal(tall, grey.T)
    Image.fromarray(frame).save(tmp_path / "frame.png")
    np.save(tmp_path / "frame.npy", frame)
    for name in ("frame.png", "frame.npy"):
        np.testing.assert_array_equal(load_images(tmp_path / name, (8, 8, 3)), colour)
    Image.fromarray(np.dstack([frame, frame[..., 0]])).save(tmp_path / "transparent.png")
    np.testing.assert_array_equal(load_images(tmp_path / "transparent.png", (8, 8, 3)), colour)


def test_pictures_of_every_make(tmp_path: Path) -> None:
    step = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    wide = (step.astype(np.uint16) << 8) + 7
    Image.fromarray(wide).save(tmp_path / "sixteen.png")
    np.testing.assert_array_equal(load_images(tmp_path / "sixteen.png", (8, 8, 1))[0, ..., 0], step)
    np.testing.assert_array_equal(
        load_images(step, (8, 8, 3)), np.repeat(step[None, ..., None], 3, axis=-1)
    )
    flat = np.full((5, 3), 200, np.uint8)  # smaller than the model's input, other proportions
    assert np.all(load_images(flat, (8, 8, 1)) == 200)
    assert load_images(np.zeros((4, 30, 20), np.uint8), (8, 8, 1)).shape == (4, 8, 8, 1)
    turned = Image.fromarray(np.repeat(step, 2, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: to be turned by a quarter
    turned.save(tmp_path / "upright.png", exif=exif)
    upright = load_images(tmp_path / "upright.png", (16, 8, 1))[0, ..., 0]
    np.testing.assert_array_equal(upright, np.rot90(np.repeat(step, 2, axis=1), -1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((8, 8), np.int64), "uint8 or float within 0 and 1, not int64"),
        (np.full((8, 8), 3.5), "must lie within 0 and 1, not 3.5 and 3.5; divide"),
        (np.full((8, 8), np.nan), "must lie within 0 and 1"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"1, 3 or 4 channels, not \[2, 8, 8, 2\]"),
        (np.zeros(8, np.uint8), r"not \[8\]"),
        (np.zeros((0, 8), np.uint8), r"not \[1, 0, 8, 1\]"),
        ("none.png", "none.png: cannot be read as images"),
        ("text.jpg", "text.jpg: cannot be read as images"),
        ("text.npy", "text.npy: cannot be read as images"),
        ("text.npz", "text.npz: cannot be read as images"),
        ("other.npz", "other.npz: cannot be read as images .*`images`"),
    ],
)
def test_what_is_no_image_is_refused(
    source: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.jpg", "text.npy", "text.npz"):
        Path(name).write_text("no picture", "utf-8")
    np.savez("other.npz", pictures=np.zeros((1, 8, 8), np.uint8))
    with refused(message):
        load_images(source, (8, 8, 1))


# --- the ways to use it that are told to people


def test_the_example_and_the_command_name_what_they_see(
    exported: dict[str, Path], data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    _, test = data
    seven = int(np.flatnonzero(test.labels == 7)[0])
    large = np.kron(test.images[seven, ..., 0], np.ones((40, 40), np.uint8))
    Image.fromarray(large).convert("RGB").save(tmp_path / "photo.jpg", quality=95)
    script = [sys.executable, str(ROOT / "examples" / "classify.py")]
    model = str(exported["int8"])
    done = subprocess.run(
        [*script, model, "photo.jpg"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert re.fullmatch(r"photo\.jpg: seven \(\d+%\)\n", done.stdout), done.stderr
    told = run("predict", model, "photo.jpg", cwd=tmp_path)
    assert re.search(r"^photo\.jpg +seven +[01]\.\d{3}$", told.stdout, re.MULTILINE), told.stderr
    wrong = run("predict", model, "none.jpg", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "none.jpg: cannot be read as images" in wrong.stderr


@pytest.mark.skipif(not LITERT, reason="the card's code is for ai-edge-litert")
def test_the_code_on_the_card_runs(
    exported: dict[str, Path],
    data: tuple[Dataset, Dataset],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, test = data
    traffic = dict.fromkeys(("payload_bytes", "message_bytes", "control_bytes", "retry_bytes"), 0)
    final = {
        "accuracy": 0.9, "loss": 1.0, "digest": "ab", "version": 1, "sparsity": 0.0,
        "seconds": 1.0, "clients": [], "totals": {"uplink": traffic, "downlink": traffic},
        "models": measure_models(exported.values(), test),
    }  # fmt: skip
    metrics = {
        "schema": 1, "featherfed": "0", "run": "r", "dataset": "digits", "num_test_examples": 360,
        "num_parameters": 1, "float32_bytes": 4, "rounds": [], "final": final,
    }  # fmt: skip
    card = model_card(parse_metrics(json.loads(json.dumps(metrics))))
    monkeypatch.chdir(exported["int8"].parent)
    Image.fromarray(test.images[0, ..., 0]).save("photo.jpg", quality=100)
    ours, bare = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(ours, {})
    best = Classifier("model_int8.tflite").classify(test.images[0])[0][0]
    assert capsys.readouterr().out.splitlines()[0].endswith(f" {best}")
    exec(bare, {"image": test.images[0]})
    assert NAMES[int(capsys.readouterr().out)] == best
