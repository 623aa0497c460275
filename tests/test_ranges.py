"""int8 files from ranges that clients measure: which values, and what the file answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_model_optimization")
pytest.importorskip("ai_edge_litert")

import tf_keras
from test_export_layers import attention, image, line, masked, nested, padded, recurrent, words

from featherfed.edge_client.model_interpreter import ModelInterpreter, seen_tensors
from featherfed.edge_client.model_process import ModelProcess
from featherfed.edge_client.step_tensors import StepTensors
from featherfed.models.errors import ModelError
from featherfed.models.export import NO_RANGES, ModelFiles
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import TfliteModel

layers = tf_keras.layers
SHAPE = (6, 4, 1)


def convolutions() -> Any:
    return tf_keras.Sequential(
        [
            layers.InputLayer(SHAPE),
            layers.Conv2D(4, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(40, activation="tanh"),
            layers.Dense(3, activation="softmax", use_bias=False),
        ]
    )


def measured(model: FederatedModel, files: ModelFiles, inputs: list[Any]) -> Any:
    file = files.calibration()
    process = ModelProcess(file.content, model.task, file.inputs, file.outputs, measured=True)
    process.answer(inputs)
    ranges = process.ranges()
    process.close()
    assert ranges.shape == (len(file.tensors), 2)
    return ranges


@pytest.mark.parametrize(
    "make",
    [
        convolutions,
        *(
            pytest.param(make, marks=pytest.mark.slow)  # conversions
            for make in (recurrent, masked, nested, attention, line, image, words)
        ),
    ],
    ids=lambda make: make.__name__,
)
def test_ranges_take_the_place_of_examples(make: Callable[[], Any], tmp_path: Path) -> None:
    tf_keras.utils.set_random_seed(0)
    model, images = FederatedModel(make()), padded()
    files = ModelFiles(model, tmp_path, None)
    with pytest.raises(ModelError) as raised:
        files.tflite("int8")
    assert str(raised.value) == NO_RANGES
    ranges = measured(model, files, [images])
    by_ranges = ModelFiles(model, tmp_path, None, ranges=ranges).tflite("int8")
    by_examples = ModelFiles(model, tmp_path, [images]).tflite("int8")
    answers = TfliteModel(by_ranges).predict([images])
    expected = TfliteModel(by_examples).predict([images])
    exact = model.predict([images])
    off, same = np.abs(answers - exact).max(), np.abs(expected - exact).max()
    assert off <= same + 0.02, (off, same)

    # What a client finds the file to answer is what everyone else does.
    process = ModelProcess(by_ranges, model.task, (0,), (0,))
    np.testing.assert_allclose(process.answer([images]), answers, atol=1e-6)
    process.close()
    with pytest.raises(ModelError, match=r"ranges of 1 tensors, and the model has \d+"):
        ModelFiles(model, tmp_path, None, ranges=ranges[:1]).tflite("int8")


def test_a_client_with_tensorflow_alone_measures_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tf_keras.utils.set_random_seed(0)
    model, images = FederatedModel(convolutions()), padded()
    file = ModelFiles(model, tmp_path, None).calibration()
    tensors, found = seen_tensors(StepTensors.of(model.task)), []
    for _ in range(2):
        interpreter = ModelInterpreter(
            file.content, tensors, file.inputs, file.outputs, 1, measured=True
        )
        seen = [given.seen(images) for given in model.task.inputs]
        np.testing.assert_allclose(interpreter.answer(seen)[0], model.predict([images]), atol=0.05)
        found.append(interpreter.ranges())
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert found[0].shape == (len(file.tensors), 2)
    assert (found[0][:, 0] < found[0][:, 1]).all()
