"""Code on the pages of the documentation that have no test of their own runs as it stands.

A block with the attribute `.run` is run, `.terminals` each line in a process of its own, all at the
same time. Blocks without are in NOT_RUN, with the reason. The blocks of python.md, tasks.md and
your-own-task.md are run by tests of those names.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.kills import free_port
from support.processes import Processes, run

from featherfed.server.settings.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = (
    "algorithms",
    "codecs",
    "first-ten-minutes",
    "from-flower",
    "how-it-works",
    "how-we-measure",
    "index",
    "live-page",
    "models",
    "observability",
    "operating",
    "privacy-and-security",
    "raspberry-pi",
    "sweeps",
)
PORT = "8765"
SWEEP = "featherfed sweep examples/sweep.toml"
_NAMED_BY = 60  # characters
A_PI = "a device: an SD card, a network, systemd; test_deploy.py runs the installer"
NOT_RUN = {
    (
        "first-ten-minutes",
        "python3 -m venv .venv",
    ): "downloads 3 GB; the benchmark of its name does",
    ("codecs", SWEEP): "test_accuracy.py runs it",
    ("how-we-measure", SWEEP): "the same",
    (
        "operating",
        "featherfed serve run.toml",
    ): "a run file of the reader's; first-ten-minutes serves",
    ("from-flower", "import numpy as np"): "Flower needs an environment of its own",
    ("live-page", "curl http://127.0.0.1:8780/api/run"): "test_live_page.py asks the same",
    ("live-page", "act() {"): "test_live_page.py acts the same way",
    ("observability", "featherfed watch 127.0.0.1:8080"): "test_readme.py runs it",
    (
        "sweeps",
        "pip install 'featherfed[cluster]'       # on each machine",
    ): "test_ray.py has a cluster",
    ("models", "backbone.trainable = False"): "a part of a program; test_transfer_learning.py",
    ("raspberry-pi", "ssh pi@kitchen.local"): A_PI,
    ("raspberry-pi", "sudo sh featherfed/deploy/install.sh"): A_PI,
    ("raspberry-pi", "scp -r photos pi@kitchen.local:/srv/featherfed/data"): A_PI,
    ("raspberry-pi", "featherfed certs init certs --host server.local"): "test_readme.py runs it",
    ("raspberry-pi", "featherfed serve run.toml"): A_PI,
    ("raspberry-pi", "sudo sh featherfed/deploy/install.sh --credentials credentia"): A_PI,
    ("raspberry-pi", "sudo nano /etc/featherfed/client.env"): A_PI,
    ("raspberry-pi", "sudo -u featherfed /opt/featherfed/bin/featherfed certs init"): A_PI,
    ("raspberry-pi", "sudo sh featherfed/deploy/install.sh --role follow --credent"): A_PI,
}
"""(page, beginning of a block) -> why it is not run here."""


class Block(NamedTuple):
    """A block of code: its language, the attributes after it, and its text."""

    language: str
    attributes: frozenset[str]
    text: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page that are code."""
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    found = re.findall(r"^```(\w+)(?: \{([^}\n]*)\})?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(language, frozenset(more.split()), body) for language, more, body in found]


def first_words(block: Block) -> str:
    """Return the beginning of a block's first line, by which NOT_RUN names it."""
    return block.text.partition("\n")[0][:_NAMED_BY]


def lines(page: str) -> list[str]:
    """Return the commands of a page that are to be run."""
    chosen = [b for b in blocks(page) if b.language in ("sh", "console") and ".run" in b.attributes]
    return [line for block in chosen for line in block.text.splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_run_or_listed_with_the_reason(page: str) -> None:
    for block in blocks(page):
        if block.language in ("python", "sh", "console") and ".run" not in block.attributes:
            assert NOT_RUN.get((page, first_words(block))), block.text
        assert block.attributes <= {".run", ".terminals"}, block.attributes


def test_the_list_names_blocks_that_there_are() -> None:
    for page, first in NOT_RUN:
        assert first in {first_words(block) for block in blocks(page)}


@pytest.mark.parametrize("page", PAGES)
def test_each_run_file_can_be_served(page: str) -> None:
    for block in blocks(page):
        if block.language == "toml":
            Settings.model_validate(tomllib.loads(block.text))


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # not the person's own
    made = Processes(tmp_path)
    yield made
    made.end()


def done(command: str, folder: Path) -> str:
    """Run a `featherfed` command of a page; return what it printed."""
    program, *arguments = command.split()
    assert program == "featherfed"
    ended = run(*arguments, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_page_on_security_runs(tmp_path: Path) -> None:
    printed = [done(command, tmp_path) for command in lines("privacy-and-security")]
    assert len(printed) == 4
    assert "attic" in printed[2]


@pytest.mark.slow  # trains a CNN
def test_the_program_beside_flowers_runs(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("from-flower") if ".run" in block.attributes]
    (tmp_path / "program.py").write_text(block.text, "utf-8")
    ended = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    *_, scores, sent = ended.stdout.splitlines()
    assert float(scores.strip("[]").split()[-1]) > 0.8
    assert int(sent) > 3 * 2 * 4 * 2410  # rounds, clients, bytes, parameters


@pytest.mark.slow  # two runs over gRPC
def test_the_first_ten_minutes_and_operating_run(processes: Processes) -> None:
    folder, port = processes.directory, str(free_port())
    shutil.copytree(ROOT / "examples", folder / "examples")
    run_file = folder / "examples" / "run.toml"
    run_file.write_text(run_file.read_text("utf-8").replace(PORT, port), "utf-8")
    for block in blocks("first-ten-minutes") + blocks("operating"):
        if ".run" not in block.attributes:
            continue
        commands = block.text.replace(PORT, port).splitlines()
        if ".terminals" not in block.attributes:
            for command in commands:
                done(command, folder)
            continue
        for number, command in enumerate(commands):
            processes.start(str(number), *command.split()[1:])
        for number, command in enumerate(commands):
            assert processes.wait(str(number), 200) == 0, command + processes.log(str(number))
    assert (folder / "runs/demo/report.html").exists()
    assert (folder / "runs/digits/model_int8.tflite").exists()
    assert (folder / "backups/digits/run.db").exists()


def test_ten_minutes_were_enough_when_they_were_measured() -> None:
    path = ROOT / "benchmarks" / "results" / "first_ten_minutes.json"
    measured = json.loads(path.read_text("utf-8"))
    assert 0 < measured["to_joined_clients"] < measured["to_the_end_of_the_page"] < 600
    commands = {block.text.partition("\n")[0] for block in blocks("first-ten-minutes")}
    assert set(measured["seconds_until"]) == commands, "measured of another page"
