"""What `pip install featherfed[edge]` puts on a device: little, no TensorFlow, and all it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Processes, wait_until

from featherfed.datasets.sources import load_train_test

ROOT = Path(__file__).parent.parent
LARGEST = 190  # MB as `du -sm` counts them, pip and setuptools included
ABSENT = ["tensorflow", "keras", "tf_keras", "rich", "pydantic"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel and its extra `edge`; returns its folder."""
    directory = tmp_path_factory.mktemp("edge")
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT
    )  # fmt: skip
    (wheel,) = directory.glob("*.whl")
    run(sys.executable, "-m", "venv", directory / "venv")
    pip = [directory / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", f"featherfed[edge] @ {wheel.as_uri()}")
    return directory / "venv"


def test_it_is_small(edge: Path) -> None:
    packages = next(edge.glob("lib/python*/site-packages"))
    parts = run("du", "-sm", *sorted(p for p in packages.iterdir() if p.is_dir()))
    size = int(run("du", "-sm", edge).split()[0])
    assert size <= LARGEST, parts


def test_there_is_no_tensorflow(edge: Path) -> None:
    code = f"""
from importlib.util import find_spec
print([name for name in {ABSENT!r} if find_spec(name)])
import ai_edge_litert.interpreter, psutil, zeroconf
import featherfed.api.join, featherfed.cli.predict
"""
    assert run(edge / "bin" / "python", "-c", code).strip() == "[]"


@pytest.mark.parametrize("command", ["join", "predict"])
def test_the_commands_run(edge: Path, command: str) -> None:
    assert f"Usage: featherfed {command}" in run(edge / "bin" / "featherfed", command, "--help")


RUN = """
name = "edge"
output = "out"
rounds = 5
server = { port = 0, linger = 20 }
training = { learning_rate = 0.1 }
clients = { minimum = 2, quorum = 1.0, deadline = 120 }
evaluation = { dataset = "digits" }
"""

DEVICE = """
import atexit, json, sys
from importlib.util import find_spec
from pathlib import Path
import numpy as np
from featherfed.datasets.dataset import Dataset

UNWANTED = ("tensorflow", "keras", "tf_keras", "tensorflow_model_optimization", "jax", "torch")

def look():
    importable = [name for name in UNWANTED if find_spec(name)]
    loaded = sorted({name.split(".")[0] for name in sys.modules})
    facts = {"importable": importable, "loaded": loaded, "packages": sys.path}
    Path(f"modules-{NUMBER}.json").write_text(json.dumps(facts))

def data():
    look()
    atexit.register(look)  # again when it has trained
    with np.load(f"data-{NUMBER}.npz") as archive:
        return Dataset.from_images(archive["x"][..., 0], archive["y"])
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


def test_it_trains_to_the_end_of_a_run_without_tensorflow(edge: Path, processes: Processes) -> None:
    folder = processes.directory
    train, _ = load_train_test("digits")
    (folder / "run.toml").write_text(RUN, "utf-8")
    processes.start("server", "serve", "run.toml")
    address = folder / "out" / "server.address"
    wait_until(lambda: address.is_file() or processes.running["server"].poll() is not None)
    for number in range(2):
        train.take(range(number, len(train), 2)).save(folder / f"data-{number}.npz")
        code = f"NUMBER = {number}\n{DEVICE}"
        (folder / f"device{number}.py").write_text(code, "utf-8")
        with (folder / f"pi{number}.log").open("wb") as log:
            processes.running[f"pi{number}"] = subprocess.Popen(
                [
                    edge / "bin" / "featherfed", "join", address.read_text("utf-8"), "--data",
                    f"device{number}:data", "--name", f"pi{number}", "--state-dir",
                    f"state{number}", "--runtime", "auto",
                ],
                stdout=log, stderr=subprocess.STDOUT, cwd=folder,
            )  # fmt: skip
    for name in ("server", "pi0", "pi1"):
        assert processes.wait(name) == 0, processes.log(name)
    metrics = json.loads((folder / "out" / "metrics.json").read_text("utf-8"))
    assert metrics["final"]["scores"]["accuracy"] > 0.85
    for number in range(2):
        assert "training with litert" in processes.log(f"pi{number}")
        assert metrics["final"]["digest"][:16] in processes.log(f"pi{number}")
        facts = json.loads((folder / f"modules-{number}.json").read_text("utf-8"))
        assert facts["importable"] == []
        assert set(facts["loaded"]) & set(ABSENT) == set()
        assert "ai_edge_litert" not in facts["loaded"], "its process has it, and not the client"
    assert {c["runtime"] for r in metrics["rounds"] for c in r["clients"]} == {"litert"}
