"""A released model that was made to crash LiteRT is refused before a program classifies with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import model_mutations
from support.model_mutations import CLASSIFIES
from support.step_mutations import REFUSED, step

from featherfed.models import trial
from featherfed.models.errors import ModelError
from featherfed.models.tflite import Classifier, TfliteModel

CRASHED_BEFORE = [5006, 5176, 5198]
"""Seeds of models that killed the program that loaded them."""


def test_mutated_models_classify_or_are_refused(tmp_path: Path) -> None:
    found = model_mutations.try_seeds([*CRASHED_BEFORE, *range(100)], tmp_path)
    assert set(found) <= {CLASSIFIES, REFUSED}, found
    assert found[CLASSIFIES] > 10


def test_a_model_that_crashes_litert_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(model_mutations.mutate(CRASHED_BEFORE[0]))
    with pytest.raises(ModelError, match=r"model\.tflite crashed LiteRT with SIG.*fetch it anew"):
        Classifier(path)


def test_a_model_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.01)
    with pytest.raises(ModelError, match="does not end"):
        trial.try_model(b"", "model.tflite")


def test_a_model_that_is_none_is_told_what_was_wrong(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 2000)
    with pytest.raises(ModelError, match=r"model\.tflite is not a model to use: .*TFLite model"):
        Classifier(path)


def test_a_step_is_no_model() -> None:
    with pytest.raises(ModelError, match="outputs; it needs one"):
        TfliteModel(step("mlp-none-adam").train.content)
    with pytest.raises(ModelError, match="does not turn images into probabilities"):
        TfliteModel(step("mlp-none-adam").answer.content)


def test_one_that_passes_classifies(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(model_mutations._model("mlp-int8.tflite.zst")[0])
    names = {str(n) for n in range(10)}
    assert Classifier(path).classify(np.zeros((8, 8, 1), np.uint8))[0][0] in names
