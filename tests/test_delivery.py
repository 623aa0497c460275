"""What a run delivers: files that are measured, name their classes and classify any picture."""

from __future__ import annotations

import io
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
from test_report import metrics

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
    FileTask,
    TfliteModel,
    read_labels,
    read_task,
    with_task,
)
from featherfed.report.card import model_card
from featherfed.report.schema import parse_metrics
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import image_task

ROOT = Path(__file__).parent.parent
KINDS = ("float32", "float16", "dynamic", "int8")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "Ångström | 8", "nine")
TASK = image_task((8, 8, 1), NAMES)
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
    model = FederatedModel(zoo.build("mlp", train.input_shape, 10), task=TASK)
    model.fit(train.inputs, train.targets, epochs=8, learning_rate=0.1)
    folder = tmp_path_factory.mktemp("exported")
    paths = export(model, folder, calibration_set(train).inputs)
    return dict(zip(KINDS, paths, strict=False))


def refused(message: str) -> Any:
    return pytest.raises(ModelError, match=message)


# --- what is measured


def test_a_file_is_measured_in_a_process_without_tensorflow(
    exported: dict[str, Path], data: tuple[Dataset, Dataset]
) -> None:
    _, test = data
    rows = measure_models(exported.values(), test)
    assert [row["kind"] for row in rows] == list(KINDS)
    for row in rows:
        path = exported[row["kind"]]
        assert row["bytes"] == path.stat().st_size > row["gzip_bytes"] > 1000
        assert row["scores"] == TfliteModel(path).evaluate(test.inputs, test.targets)
        assert row["scores"]["accuracy"] > 0.9
        assert row["num_examples"] == 360
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"] < 1000
        if LITERT and sys.platform == "linux":
            # Not the hundreds of megabytes of the process that asks.
            assert 20e6 < row["idle_memory_bytes"] <= row["memory_bytes"] < 150e6
            assert row["runtime"].startswith("ai-edge-litert ")
        else:
            assert row["memory_bytes"] is row["idle_memory_bytes"] is None
    (floats,), (integers,) = rows[0]["inputs"], rows[-1]["inputs"]
    assert floats == {"name": "image", "dtype": "float32", "scale": None, "zero_point": None}
    scale = {"scale": pytest.approx(1 / 255), "zero_point": 0}
    assert integers == {"name": "image", "dtype": "uint8", **scale}


def test_without_data_only_costs_are_measured(exported: dict[str, Path]) -> None:
    (row,) = measure_models([exported["int8"]], None)
    assert (row["scores"], row["num_examples"]) == ({}, 0)
    assert row["latency_ms"] > 0


def test_what_cannot_be_measured_says_why(exported: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros((2, 9, 9, 1), np.uint8), labels=[0, 1])
    with refused(r"input 'image' must be uint8 \[8, 8, 1\], not uint8 \[9, 9, 1\]"):
        measure(exported["int8"], tmp_path / "other.npz")
    with refused("no model file"):
        measure(tmp_path / "none.tflite", tmp_path / "other.npz")
    with refused("no such file"):
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
        model.fit(train.inputs, train.targets, epochs=5, learning_rate=0.1, sparsity=sparsity)
    *paths, _ = export(model, tmp_path, calibration_set(train).inputs)
    found = {
        kind: TfliteModel(path).predict(test.inputs)
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


# --- the task and its class names


def bare(path: Path) -> bytes:
    """Return a file's model without what follows it."""
    content = path.read_bytes()
    return content[: content.index(b"PK\3\4")]


def with_members(model: bytes, **texts: str) -> bytes:
    """Return a model followed by an archive of texts."""
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        for name, text in texts.items():
            archive.writestr(name.replace("_", "."), text)
    return file.getvalue()


def labels(*names: str) -> str:
    return "\n".join(names) + "\n"


def test_the_task_travels_in_the_file(exported: dict[str, Path], tmp_path: Path) -> None:
    for path in exported.values():
        assert read_task(path.read_bytes(), "m") == FileTask(TASK, Scaling.none(TASK))
        assert read_labels(path) == NAMES
        assert Classifier(path).class_names == NAMES
    with zipfile.ZipFile(exported["int8"]) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)
        assert json.loads(archive.read("task.json"))["task"] == TASK.as_dict()
    path = tmp_path / "bare.tflite"
    path.write_bytes(bare(exported["int8"]))
    assert read_labels(path) == ()
    assert Classifier(path).class_names == tuple("0123456789")
    again = with_task(path.read_bytes(), FileTask(TASK, Scaling.none(TASK)))
    assert again == exported["int8"].read_bytes(), "equal tasks, equal bytes"


def test_files_that_hold_labels_alone_are_read(exported: dict[str, Path], tmp_path: Path) -> None:
    """As before tasks were written into files."""
    path = tmp_path / "model.tflite"
    path.write_bytes(with_members(bare(exported["int8"]), labels_txt=labels(*NAMES)))
    assert Classifier(path).class_names == NAMES


def test_class_names_that_do_not_fit(exported: dict[str, Path], tmp_path: Path) -> None:
    content, model = exported["int8"].read_bytes(), bare(exported["int8"])
    path = tmp_path / "model.tflite"
    path.write_bytes(with_members(model, labels_txt=labels(*NAMES[:3])))
    with refused("names 3 classes but tells 10 apart"):
        Classifier(path)
    path.write_bytes(content.replace("Ångström".encode(), b"Angstrom 8"))
    with refused(r"labels\.txt is damaged"):
        Classifier(path)
    path.write_bytes(with_members(model, labels_txt=labels("a\r\x1b[2Jb", "x" * 200)))
    assert read_labels(path) == (r"a\r\x1b[2Jb", "x" * 100 + "... (100 characters more)")
    path.write_bytes(with_members(model, labels_txt="x" * (1 << 23)))
    with refused(r"labels\.txt is larger"):
        read_labels(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its task is damaged"),
        ("[" * 100_000, "its task is damaged"),
        ("7", "its task is damaged"),
        ("{}", "its task is damaged"),
        (" " * (1 << 23), r"task\.json is larger"),
        ('"float32"', "its task is damaged .*no dtype"),
        ('"zero"', "its task is damaged .*name of a class"),
        ('"standardize"', "its task is damaged .*scaling of other tensors"),
        ("9, 9, 1", "the model takes .8, 8, 1., the task gives .9, 9, 1."),
        ('"nine"]', "the model answers with .10., the task needs .11."),
        ('"shape": []', "the model answers with .10., the task needs .4, 10."),
    ],
)
def test_a_task_that_is_not_the_models_is_refused(
    exported: dict[str, Path], text: str, message: str
) -> None:
    """What stands in quotes or brackets is a place in a right task that is changed."""
    whole = json.dumps({**json.loads(_task_text(exported["int8"])), "tensor_names": []})
    changes = {
        '"float32"': ('"uint8"', '"complex64"'),
        '"zero"': ('"zero"', '"ze\\u001b[2Jro"'),
        '"standardize"': ('"dtype": "uint8", ', '"dtype": "float32", "standardize": true, '),
        "9, 9, 1": ("[8, 8, 1]", "[9, 9, 1]"),
        '"nine"]': ('"nine"]', '"nine", "ten"]'),
        '"shape": []': ('"shape": []', '"shape": [4]'),
    }
    if text in changes:
        old, new = changes[text]
        assert old in whole
        text = whole.replace(old, new)
    with refused(message) as caught:
        TfliteModel(with_members(bare(exported["int8"]), task_json=text))
    assert str(caught.value).isprintable()


def _task_text(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read("task.json").decode()


# --- pictures, arrays, frames


def test_a_classifier_takes_files_and_arrays(
    exported: dict[str, Path], data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    _, test = data
    classifier = Classifier(exported["float32"])
    expected = TfliteModel(exported["float32"]).predict([test.images[:3]])
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
    told = {**metrics(), "task": TASK.as_dict()}
    told["final"]["models"] = measure_models(exported.values(), test)
    card = model_card(parse_metrics(json.loads(json.dumps(told))))
    monkeypatch.chdir(exported["int8"].parent)
    Image.fromarray(test.images[0, ..., 0]).save("photo.jpg", quality=100)
    ours, bare = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(ours, {})
    best = Classifier("model_int8.tflite").classify(test.images[0])[0][0]
    assert capsys.readouterr().out.splitlines()[0].endswith(f" {best}")
    exec(bare, {"image": test.images[0]})
    assert NAMES[int(capsys.readouterr().out)] == best
