"""What devices install resolves to wheels alone, for each Python and processor, and is locked."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "deploy" / "constraints.txt"
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
uv = pytest.importorskip("uv", reason="resolves for other machines: needs featherfed[dev]")


def resolve(python: str, machine: str, folder: Path, *what: str | Path) -> str:
    """Return what would be installed on another machine, of wheels alone; fail if it cannot be."""
    command = [
        uv.find_uv_bin(), "pip", "install", "--dry-run", "--only-binary", ":all:",
        "--python-version", python, "--python-platform", f"{machine}-manylinux_2_31",
        "--target", folder, *what,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def pip(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip unless pip reaches an index of packages."""
    folder = tmp_path_factory.mktemp("index")
    done = pip("download", "--quiet", "--no-deps", "--dest", folder, "tenacity")
    if done.returncode:
        pytest.skip("pip reaches no index of packages here, and this resolves against one")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_a_device_finds_a_wheel_of_each_package(
    python: str, machine: str, wheel: Path, tmp_path: Path
) -> None:
    would = resolve(python, machine, tmp_path, f"featherfed[edge,images] @ {wheel.as_uri()}")
    assert "ai-edge-litert" in would
    assert "tensorflow" not in would
    assert ("backports-zstd" in would) == (python != "3.14")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_the_hashes_of_what_a_device_installs(
    python: str, machine: str, tmp_path: Path
) -> None:
    would = resolve(python, machine, tmp_path, "--require-hashes", "--requirement", LOCK)
    assert "ai-edge-litert" in would


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("index")
def test_pip_itself_installs_the_lock(tmp_path: Path) -> None:
    """Which, unlike uv, minds what a package says of newer Pythons."""
    done = pip(
        "install", "--dry-run", "--ignore-installed", "--target", tmp_path, "--require-hashes",
        "--only-binary=:all:", "--requirement", LOCK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_lock_holds_each_direct_dependency_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *extras["edge"], *extras["images"], "setuptools"]
    text = LOCK.read_text("utf-8")
    entries = re.split(r"\n(?=\w)", text)
    locked = {entry.partition("==")[0]: entry for entry in entries if "==" in entry}
    for requirement in direct:
        name = re.split(r"[><=;\[ ]", requirement)[0].lower().replace(".", "-")
        assert "--hash=sha256:" in locked[name], name
    assert all("--hash=" in entry for entry in locked.values())


def test_tensorflow_is_left_out_where_it_has_no_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    for requirement in project["optional-dependencies"]["tensorflow"]:
        assert requirement.endswith("; python_version < '3.14'"), requirement
