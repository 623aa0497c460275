"""What says the version agrees, and the source archive's own tests run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.processes import run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
yaml = pytest.importorskip("yaml", reason="needs featherfed[docs]")


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


@pytest.mark.parametrize("command", ["--version", "version"])
def test_the_command_tells_the_version(command: str, tmp_path: Path) -> None:
    done = run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == importlib.metadata.version("featherfed") + "\n"


def test_changelog_and_citation_are_of_the_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    cited = loaded("CITATION.cff")
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert headings[1] == f"{PROJECT['version']} ({cited['date-released']})"


def test_classifiers_and_the_matrix_name_the_same_pythons() -> None:
    prefix = "Programming Language :: Python :: 3."
    classified = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    jobs = loaded(".github/workflows/test.yml")["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]["python"]
    assert [f"3.{minor}" for minor in classified] == matrix
    assert {"run": "bash .ci/run"} in jobs["test"]["steps"]


def test_the_hooks_are_those_of_make_check() -> None:
    (repository,) = loaded(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text("utf-8")
    check = re.search(r"^check: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert check
    tools = set(re.findall(r"\$\(BIN\)/(\w+)", check[1]))
    entries = [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    assert tools <= set(entries)
    config = str(ROOT / ".pre-commit-config.yaml")
    command = [sys.executable, "-m", "pre_commit", "validate-config", config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_each_form_for_issues_has_what_github_asks_for() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text("utf-8"))
        if path.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= form.keys()
        ids = [item["id"] for item in form["body"] if item["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        assert all("label" in item["attributes"] for item in form["body"] if "id" in item)


def test_the_bill_of_materials_lists_what_a_device_gets(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py", reason="needs featherfed[dev]")
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    line = re.search(r"^\t\$\(BIN\)/cyclonedx-py (.*)$", makefile, re.MULTILINE)
    assert line
    made = tmp_path / "sbom.json"
    arguments = line[1].replace("build/sbom.json", str(made)).split()
    command = [sys.executable, "-m", "cyclonedx_py", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    bill = json.loads(made.read_text("utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["version"] == PROJECT["version"]
    listed = {component["name"] for component in bill["components"]}
    lock = (ROOT / "deploy" / "constraints.txt").read_text("utf-8")
    assert listed == set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tests_run_from_the_source_archive(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    tests = ["test_quantizers.py", "test_settings.py", "test_design.py", "test_architecture.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in tests)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
