"""`featherfed export`: files of any version of a run, and runs that go on, by the real commands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow_model_optimization")

import tf_keras
from click.testing import CliRunner
from support.processes import run as command
from support.small_runs import SHAPE, SmallRun, windows

from featherfed.api.export import export_version
from featherfed.api.stored_run import open_stored_run
from featherfed.cli.main import app
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.models.errors import ModelError
from featherfed.models.export import load_keras
from featherfed.models.tflite import TfliteModel

L = tf_keras.layers


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run of two rounds, that then went on to four by `serve --rounds`."""
    made = SmallRun(
        tmp_path_factory.mktemp("run"),
        tf_keras.Sequential([L.Input(SHAPE), L.Flatten(), L.Dense(2, "softmax")]),
    )
    try:
        made.serve()
        made.join("a", windows(60, 1), "--runtime", "litert")
        before = made.finish("a")
        made.serve("--rounds", "4", name="again")
        made.join("b", windows(60, 2), "--runtime", "litert")
        made.join("a", windows(60, 1), "--runtime", "litert")
        after = made.finish("a", "b", server="again")
    finally:
        made.processes.end()
    assert [r["digest"] for r in after["rounds"]][:2] == [r["digest"] for r in before["rounds"]]
    assert (after["final"]["version"], after["settings"]["rounds"]) == (4, 4)
    assert "goes on to 4 rounds, from round 3 on" in made.log("again")
    return made


def digest_of(keras: Any) -> str:
    return weights_digest([np.array(w) for w in keras.get_weights()]).hex()


def test_every_version_is_what_it_was(finished: SmallRun, tmp_path: Path) -> None:
    digests = [r["digest"] for r in finished.metrics()["rounds"]]
    for number, digest in enumerate(digests, 1):
        export_version(finished.output, str(number), False, tmp_path / str(number), ["float32"])
        assert digest_of(load_keras(tmp_path / str(number) / "model.keras")) == digest
        told = json.loads((tmp_path / str(number) / "metrics.json").read_text("utf-8"))
        assert [r["digest"] for r in told["rounds"]] == digests[:number]
        assert told["final"]["version"] == number
        assert told["final"]["digest"] == digest
        assert (tmp_path / str(number) / "model_card.md").is_file()
    made = TfliteModel(tmp_path / "1" / "model_float32.tflite")
    assert made.task.target.class_names == ("still", "walking")


def test_the_command(finished: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [r["scores"]["accuracy"] for r in finished.metrics()["rounds"]]
    best = max(range(1, 5), key=lambda n: (scores[n - 1] or 0, n))
    done = command("export", "out", "--best", "--kind", "dynamic", cwd=finished.folder)
    assert done.returncode == 0, done.stderr
    folder = finished.output / "versions"
    number = int(done.stdout.strip().rsplit("/", 1)[1])
    assert number in (0, best)
    assert (folder / str(number) / "model_dynamic.tflite").is_file()
    for line in done.stderr.splitlines():
        assert line[2] == ":", line
    monkeypatch.chdir(finished.folder)
    for arguments, why in (
        (("--version", "9"), "the run has no version 9; it has 0 to 4"),
        (("--version", "1", "--kind", "int8"), "none of the TFLite files could be made"),
        (("--kind", "int4"), "no kind 'int4'; use float32, float16, dynamic, int8"),
        (("--output", "out"), "is the run's own folder"),
        (("--best", "--version", "1"), "drop one"),
    ):
        refused = CliRunner().invoke(app, ["export", "out", *arguments])  # without a new process
        assert refused.exit_code in (1, 2)
        assert why in refused.stderr


def test_what_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"run\.db: no such file; give the output folder"):
        export_version(tmp_path, None, False, None, ["float32"])


def test_version_0_has_no_card(finished: SmallRun, tmp_path: Path) -> None:
    export_version(finished.output, "0", False, tmp_path, ["float32"])
    assert not (tmp_path / "model_card.md").exists()
    with open_stored_run(finished.output) as run:
        model = load_keras(tmp_path / "model.keras")
        assert digest_of(model) == run.find("0").digest.hex()
