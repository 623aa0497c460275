"""docs/your-own-task.md: its files are written, and every line of it is run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kills import free_port
from support.processes import Processes, run

PAGE = (Path(__file__).parent.parent / "docs" / "your-own-task.md").read_text("utf-8")
PORT = "8765"
FILES = dict(re.findall(r"```(?:python|toml)\n# ([\w.]+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    line.split()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # not the person's own
    made = Processes(tmp_path)
    yield made
    made.end()


def test_every_block_is_a_file_or_a_command() -> None:
    assert list(FILES) == ["make_data.py", "model.py", "run.toml", "forecast.py"]
    assert PAGE.count("```") == 2 * (len(FILES) + PAGE.count("```sh"))
    done = [command[0] if command[0] != "featherfed" else command[1] for command in COMMANDS]
    assert done == ["python", "serve", "join", "join", "predict", "scp", "python", "scp"]


@pytest.mark.slow  # four starts of TensorFlow; tests/test_table_runs.py runs another forecast
def test_the_page_works_as_it_stands(processes: Processes) -> None:
    folder, port = processes.directory, str(free_port())
    for name, text in FILES.items():
        (folder / name).write_text(text.replace(PORT, port))
    make, serve, kitchen, garden, predict, copy, forecast, copy_data = COMMANDS
    assert python(folder, make) == ""
    processes.start("server", *serve[1:])
    for client in (kitchen, garden):
        processes.start(client[-1], *[word.replace(PORT, port) for word in client[1:]])
    assert processes.wait("server", 200) == 0, processes.log("server")
    for name in ("kitchen", "garden"):
        assert processes.wait(name, 60) == 0, processes.log(name)
    output = folder / "runs/heating"
    assert {"model_card.md", "report.html"} <= {path.name for path in output.iterdir()}
    log = processes.log("server")
    errors = [float(error) for error in re.findall(r"version \d+: loss .* mae ([\d.]+)", log)]
    assert len(errors) == 11
    assert errors[-1] < min(1.0, errors[0] / 2)  # degrees

    done = run(*predict[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    _, line = done.stdout.splitlines()
    hours = [float(word) for word in line.split()[1:]]
    assert len(hours) == 6
    assert all(15 < degrees < 25 for degrees in hours)

    pi = folder / "pi"
    pi.mkdir()
    for *files, target in (copy[1:], copy_data[1:]):
        assert target == "pi@kitchen.local:"
        for file in files:
            shutil.copy(folder / file, pi)
    said = python(pi, forecast)
    assert [float(word) for word in re.findall(r"[\d.]+", said)] == pytest.approx(hours, abs=0.06)


def python(folder: Path, command: list[str]) -> str:
    """Run a script of the page; return what it says."""
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
