"""The examples of docs/python.md run as they stand, one after the other."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import featherfed

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "python.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_run(tmp_path: Path) -> None:
    code = "\n".join(BLOCKS)
    if not find_spec("pandas"):
        code = code.replace("frame = history.to_pandas()", "frame = None")
    (tmp_path / "examples.py").write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, "examples.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "<History: 3 rounds, accuracy 0." in done.stdout
    for made in (
        "history.png",
        "answers.png",
        "clients.png",
        "digits.keras",
        "metrics.json",
        "out/report.html",
    ):
        assert (tmp_path / made).exists(), made


def test_every_name_is_explained() -> None:
    names = set(re.findall(r"`(?:featherfed\.)?(\w+)`", TEXT)) | set(
        re.findall(r"featherfed\.(\w+)", TEXT)
    )
    missing = set(featherfed.__all__) - names
    assert missing <= {"Callback", "KerasLoop", "HeldModel", "Round", "TrainingResult"}


def test_every_argument_of_simulate_is_in_the_table() -> None:
    named = set(re.findall(r"`(\w+)`", TEXT))
    assert set(inspect.signature(featherfed.simulate).parameters) <= named | {"task"}
