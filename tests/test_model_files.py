"""The files of a model of every kind of task: TFLite answers as Keras does, in the task's words."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")

from support.tasks import TASKS, random_data

from featherfed.datasets.dataset import Dataset
from featherfed.models.errors import ModelError
from featherfed.models.export import KINDS, ModelFiles, load_keras
from featherfed.models.measure import measure
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import Predictor, TfliteModel, noise
from featherfed.tasks.records import fields
from featherfed.tasks.scaling import FeatureScale, Scaling
from featherfed.tasks.task import Input, Target, TargetKind, Task

FAR = {"float32": 1e-5, "float16": 0.01, "dynamic": 0.1, "int8": 0.2}
"""By so much of the largest answer each kind may be off."""


FAST = ("several outputs", "two classes, one output", "two inputs", "the input")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TASKS],
)
def test_every_kind_answers_as_keras(name: str, tmp_path: Path) -> None:
    build, task = TASKS[name]
    model = FederatedModel(build(), task=task)
    inputs = random_data(task, 40).inputs
    files = ModelFiles(model, tmp_path, inputs)
    expected = model.predict(inputs)
    load_keras(files.write_keras())
    for kind in KINDS:
        found = TfliteModel(files.write_tflite(kind)).predict(inputs)
        assert found.shape == expected.shape
        names = task.target.names
        for a, b in zip(fields(found, names), fields(expected, names), strict=True):
            assert a.shape == b.shape
            off = float(np.abs(a - b).max()) / max(1.0, float(np.abs(b).max()))
            assert off <= FAR[kind], kind


def scaled() -> tuple[FederatedModel, Scaling, Dataset]:
    build, _ = TASKS["a vector"]
    floats = Input("x", "float32", (6, 2), standardize=True)
    task = Task((floats,), Target(TargetKind.VALUES, (4,), standardize=True))
    scale = FeatureScale(np.float32([100, -3]), np.float32([20, 0.5]))
    own = FeatureScale(np.float32([1, 2, 3, 4]), np.float32([10, 10, 10, 10]))
    rng = np.random.default_rng(0)
    x = rng.normal([100, -3], [20, 0.5], (50, 6, 2)).astype(np.float32)
    y = rng.normal(0, 10, (50, 4)).astype(np.float32)
    return FederatedModel(build(), task=task), Scaling((scale,), own), Dataset((x,), y)


def test_a_file_takes_and_gives_values_in_their_own_units(tmp_path: Path) -> None:
    model, scaling, data = scaled()
    prepared = scaling.prepare(data.inputs)
    path = ModelFiles(model, tmp_path, prepared, scaling).write_tflite("float32")
    predictor = Predictor(path)
    assert predictor.task == model.task
    expected = model.predict(prepared) * 10 + np.float32([1, 2, 3, 4])
    np.testing.assert_allclose(predictor.predict(data.inputs[0]), expected, rtol=1e-4, atol=1e-3)
    data.save(tmp_path / "data.npz")
    figures = measure(path, tmp_path / "data.npz")
    assert figures.num_examples == 50
    assert figures.scores == pytest.approx(
        model.evaluate(prepared, data.targets, scaling), rel=1e-4
    )
    assert measure(path, None).scores == {}


def test_a_predictor_says_what_does_not_fit(tmp_path: Path) -> None:
    model, scaling, data = scaled()
    path = ModelFiles(model, tmp_path, scaling.prepare(data.inputs), scaling).write_tflite(
        "float32"
    )
    predictor = Predictor(path)
    with pytest.raises(ModelError, match="2 arrays; the model takes x"):
        predictor.predict(data.inputs[0], data.inputs[0])
    with pytest.raises(ModelError, match=r"input 'x' must be float32 \[6, 2\]"):
        predictor.predict(data.inputs[0][:, :5])


@pytest.mark.parametrize("text", ["{", "[]", '{"task": 1}', '{"task": {"inputs": []}}'])
def test_a_damaged_task_is_named(text: str, tmp_path: Path) -> None:
    model, scaling, data = scaled()
    content = ModelFiles(model, tmp_path, scaling.prepare(data.inputs)).tflite("float32")
    end = content.index(b"PK\x03\x04")
    file = io.BytesIO(content[:end])
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("task.json", text)
    with pytest.raises(ModelError, match="its task is damaged"):
        TfliteModel(file.getvalue())


def test_noise_fits_every_task() -> None:
    for _, task in TASKS.values():
        task.check_inputs(noise(task, 3))
