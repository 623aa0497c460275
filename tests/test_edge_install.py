"""What `pip install featherfed[edge]` puts on a device: little, and no TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
import featherfed.cli.join, featherfed.cli.predict
"""
    assert run(edge / "bin" / "python", "-c", code).strip() == "[]"


@pytest.mark.parametrize("command", ["join", "predict"])
def test_the_commands_run(edge: Path, command: str) -> None:
    assert f"Usage: featherfed {command}" in run(edge / "bin" / "featherfed", command, "--help")
