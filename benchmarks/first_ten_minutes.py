"""Times docs/first-ten-minutes.md: its commands, in a fresh environment, to a finished run.

Downloads what they install. Writes benchmarks/results/first_ten_minutes.json.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "first-ten-minutes.md"
RESULT = ROOT / "benchmarks" / "results" / "first_ten_minutes.json"
JOINED = re.compile(r"joined|client_joined")
PATIENCE = 600
"""Seconds for one command."""


class Failed(Exception):
    """A command of the page did not do what the page says; the text has what it printed."""


class Reader:
    """A person who follows the page: a folder with the project, and the environment made there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        binaries = folder / ".venv" / "bin"
        self._environment = {
            "PATH": f"{binaries}:{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **{key: value for key, value in os.environ.items() if key.startswith("PIP_")},
        }

    def run(self, command: str) -> None:
        """Run one command to its end; raise Failed."""
        if command.startswith(". "):  # activates the environment, which is on the path already
            return
        done = subprocess.run(
            shlex.split(command), cwd=self._folder, env=self._environment, timeout=PATIENCE,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"{command}\n{done.stdout}{done.stderr}")

    def run_together(self, commands: list[str]) -> float:
        """Run commands side by side to their end; return when the last client had joined."""
        running = [
            subprocess.Popen(
                shlex.split(command), cwd=self._folder, env=self._environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for command in commands
        ]  # fmt: skip
        joined = 0.0
        try:
            server = running[0]
            assert server.stderr is not None
            for line in server.stderr:
                if JOINED.search(line):
                    joined = time.monotonic()
            for command, process in zip(commands, running, strict=True):
                if process.wait(PATIENCE):
                    raise Failed(command)
        finally:
            for process in running:
                process.kill()
        if not joined:
            raise Failed(f"{commands[0]}: nobody joined")
        return joined


def page_blocks() -> Iterator[tuple[bool, list[str]]]:
    """Yield the blocks of commands of the page, and whether each is run side by side."""
    text = PAGE.read_text("utf-8")
    for attributes, body in re.findall(
        r"^```sh([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        yield ".terminals" in attributes, body.splitlines()


def checkout(folder: Path) -> None:
    """Copy the committed files of the project, as `git clone` would."""
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)


def measure(folder: Path) -> dict[str, object]:
    """Follow the page in `folder`; return the seconds of its parts."""
    checkout(folder)
    reader, seconds, begin = Reader(folder), {}, time.monotonic()
    joined = begin
    for together, commands in page_blocks():
        if together:
            joined = reader.run_together(commands)
        else:
            for command in commands:
                reader.run(command)
        seconds[commands[0]] = round(time.monotonic() - begin, 1)
    return {
        "seconds_until": seconds,
        "to_joined_clients": round(joined - begin, 1),
        "to_the_end_of_the_page": round(time.monotonic() - begin, 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measure once and write the result."""
    folder = Path(tempfile.mkdtemp(prefix="first-ten-minutes-", dir="/var/tmp"))
    try:
        result = measure(folder)
    finally:
        shutil.rmtree(folder)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
