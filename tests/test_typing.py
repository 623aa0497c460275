"""Types reach the user: mypy and pyright understand a script outside of the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TYPED = {
    "history": ("featherfed.simulate('mlp', task, clients=[], callbacks=[enough])", "History"),
    "scores": ("history.scores", "dict[str, list[float | None]]"),
    "panels": ("len(history.plot('confusion', (0, 0), target='a').axes)", "int"),
    "sent": ("history.rounds[0].uplink_bytes", "int"),
    "outcome": ("featherfed.Run.from_toml('run.toml', port=0).serve()", "Outcome"),
    "version": ("featherfed.Client('host:1', data='photos/').run().version", "int"),
    "names": ("Classifier('m.tflite').classify('a.png')", "list[tuple[str, float]]"),
}
"""Expressions of a user's script, and what they are."""
SCRIPT = f"""
from collections.abc import Mapping

import featherfed
from featherfed.models.tflite import Classifier
from featherfed.server.settings.settings import Settings

def enough(round: int, scores: Mapping[str, float]) -> bool:
    return scores["accuracy"] > 0.9

task = featherfed.Task(
    (featherfed.Input("x", "float32", (2,)),), featherfed.Target(featherfed.TargetKind.VALUES)
)
{"".join(f"{n} = {text}{chr(10)}reveal_type({n}){chr(10)}" for n, (text, _) in TYPED.items())}
settings: Settings = featherfed.Run.from_toml("run.toml").settings
featherfed.simulate("mlp", rounds="three", clients=[])
"""


def outside() -> dict[str, str]:
    """Return the environment variables without this checkout on Python's path."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [place for place in places if place and not Path(place).is_relative_to(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(kept), "MYPYPATH": ""}


def environment(folder: Path) -> Path:
    """Make an environment with this one's packages, but for featherfed; return its Python."""
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return folder / "bin" / "python"


def install(python: Path, *what: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, *what], check=True, cwd=python.parent, env=outside())


@pytest.fixture(params=["editable", pytest.param("wheel", marks=pytest.mark.slow)])
def python(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An environment in which featherfed is installed in a way that users install it."""
    made = environment(tmp_path / "environment")
    if request.param == "editable":
        install(made, "--editable", str(ROOT))
        return made
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    install(made, str(wheel))
    return made


def check(tool: str, script: Path, *options: str) -> tuple[str, dict[str, str]]:
    """Run a type checker; return what it says of imports and errors, and the revealed types."""
    if not find_spec(tool):
        pytest.skip(f"needs {tool}: make dev")
    done = subprocess.run(
        [sys.executable, "-m", tool, *options, script.name],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**outside(), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    lines = done.stdout.splitlines()
    found: dict[str, str] = {}
    source = script.read_text("utf-8").splitlines()
    for line in lines:
        shown = re.search(r":(\d+).*(?:Revealed type is|Type of \".*\" is) \"(.+)\"$", line)
        if shown:
            name = re.sub(r".*\((\w+)\)", r"\1", source[int(shown[1]) - 1])
            found[name] = re.sub(r"featherfed[\w.]*\.|builtins\.", "", shown[2])
    return "\n".join(line for line in lines if "error" in line), found


@pytest.mark.parametrize("tool", ["mypy", pytest.param("pyright", marks=pytest.mark.slow)])
def test_a_users_script_is_understood(tool: str, python: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, "utf-8")
    option = "--python-executable" if tool == "mypy" else "--pythonpath"
    errors, found = check(tool, script, option, str(python))
    assert found == {name: kind for name, (_, kind) in TYPED.items()}, errors
    (error,) = re.findall(r"(?::| -) error: (.*)", errors)
    assert '"rounds"' in error


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_import_of_a_plain_checkout_leads_somewhere(tmp_path: Path) -> None:
    if not find_spec("pyright"):
        pytest.skip("needs pyright: make dev")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    python = environment(tmp_path / "environment")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", str(python)],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
        env=outside(),
    )
    assert "0 errors" in done.stdout, done.stdout[-3000:]
