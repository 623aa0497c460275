"""Every command in the README is run by a test or by CI, and its results are the measured ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Processes, run, status, wait_until

from featherfed.compression.registry import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
RUN_BY_CI = {"make demo", "make test"}
HELP = ".venv/bin/featherfed demo --help"
LONG = ".venv/bin/featherfed demo --dataset fashion-mnist"
"""Twelve minutes; `make bench` runs it, and test_cli.py the same with less data."""
SWEEP = ".venv/bin/featherfed sweep examples/sweep.toml"
"""test_accuracy.py runs it."""
REAL_DEVICES = [
    "featherfed serve examples/run.toml",
    "featherfed join 127.0.0.1:8765 --name kitchen --data examples.digits:even",
    "featherfed join 127.0.0.1:8765 --name garden --data examples.digits:odd",
    "featherfed follow 127.0.0.1:8765 --model-dir models",
    "featherfed certs init certs --host server.local",
    "featherfed certs client certs kitchen garden",
    "featherfed report runs/digits",
    "featherfed predict runs/digits/model_int8.tflite",
    "featherfed backup runs/digits backups/digits",
    "featherfed check runs/digits",
    "featherfed export runs/digits --best",
]
WATCHED = [
    "featherfed serve examples/run.toml --page 127.0.0.1:8780",
    "featherfed watch 127.0.0.1:8780",
]
GO_ON = "featherfed serve examples/run.toml --rounds 12"
"""test_export_command.py runs the same of a smaller run."""
EXAMPLE = "python -m examples.tables.example"
"""test_examples.py runs the examples, on fewer data."""


def test_there_is_no_other_command_in_the_readme() -> None:
    assert sorted(COMMANDS) == sorted(
        [*RUN_BY_CI, HELP, LONG, SWEEP, GO_ON, EXAMPLE, *REAL_DEVICES, *WATCHED]
    )


def test_ci_runs_the_two_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert set(ci) >= RUN_BY_CI


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


@pytest.mark.slow  # seven commands, most of which start TensorFlow
def test_the_commands_for_real_devices_work_as_they_stand(processes: Processes) -> None:
    folder = processes.directory
    shutil.copytree(ROOT / "examples", folder / "examples")
    serve, kitchen, garden, follow, *rest = [line.split()[1:] for line in REAL_DEVICES]
    with_page, watch = [line.split()[1:] for line in WATCHED]
    assert with_page[: len(serve)] == serve
    processes.start("server", *with_page)
    # The run takes few seconds: whoever tries again in 15 may miss it.
    wait_until(lambda: status("127.0.0.1:8765").run, 120)
    processes.start("camera", *follow, "--name", "camera")
    processes.start("watch", *watch)
    processes.start("kitchen", *kitchen, "--state-dir", "kitchen")  # not the person's own home
    processes.start("garden", *garden, "--state-dir", "garden")
    assert processes.wait("server", 240) == 0, processes.log("server")
    processes.running["camera"].terminate()
    assert processes.wait("camera") == 0, processes.log("camera")
    assert processes.wait("watch") == 0, processes.log("watch")
    assert "finished" in processes.log("watch").lower()
    logs = processes.log("camera") + processes.log("server")
    released = folder / "models" / "model_int8.tflite"
    assert released.exists(), logs
    assert released.read_bytes() == (folder / "runs/digits/model_int8.tflite").read_bytes()
    wait_until(lambda: all(p.poll() is not None for p in processes.running.values()))
    assert processes.wait("kitchen") == processes.wait("garden") == 0
    for command in rest:
        done = run(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "certs/clients/kitchen/token").exists()
    assert (folder / "backups/digits/run.db").exists()


def test_help_works_and_names_the_options_of_the_readme() -> None:
    done = run(*HELP.split()[1:], cwd=ROOT)
    assert done.returncode == 0
    for option in LONG.split():
        if option.startswith("--"):
            assert option in done.stdout


def test_links_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_results_are_made_from_the_committed_measurements() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run `make readme`"


def test_the_wire_format_names_tests_that_exist_and_every_stage() -> None:
    text = (ROOT / "docs" / "wire-format.md").read_text("utf-8")
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 40
    assert {name for name in named if f"def {name}(" not in tests} == set()
    assert {stage for stage in STAGES if f"**{stage}" not in text} == {"sketch"}
    assert "## sketch(" in text


def test_each_defence_of_the_threat_model_names_what_shows_it() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+) \| .+ \| (.+) \|$", text, re.MULTILINE)[1:]
    assert len(rows) > 10
    for threat, shown in rows:
        paths = re.findall(r"`([\w./]+)`", shown)
        assert paths or shown == "the same" or "make " in shown, threat
        assert [path for path in paths if not (ROOT / path).exists()] == [], threat
