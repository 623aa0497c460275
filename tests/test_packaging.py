"""What is built and generated is what is committed and what works when installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTOC = ROOT / ".venv-proto" / "bin" / "python"


def test_the_generated_modules_are_those_of_the_proto_file(tmp_path: Path) -> None:
    if not PROTOC.exists():
        pytest.skip("needs the generator's environment: make dev")
    source = tmp_path / "featherfed"
    source.mkdir()
    (source / "proto").symlink_to(ROOT / "proto")
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(
        [
            str(PROTOC), "-m", "grpc_tools.protoc", "-Ifeatherfed/proto=featherfed/proto",
            f"--python_out={out}", f"--grpc_python_out={out}", f"--pyi_out={out}",
            f"--mypy_grpc_out={out}", "featherfed/proto/federation.proto",
        ],
        cwd=tmp_path,
        env={"PATH": str(PROTOC.parent)},
        check=True,
    )  # fmt: skip
    made = sorted((out / "featherfed" / "proto").iterdir())
    assert [path.name for path in made] == sorted(
        path.name for path in (ROOT / "proto").iterdir() if "_pb2" in path.name
    )
    for path in made:
        committed = (ROOT / "proto" / path.name).read_text("utf-8")
        assert path.read_text("utf-8") == committed, f"{path.name} is stale: make proto"


def test_the_source_archive_holds_every_room() -> None:
    grafted = set((ROOT / "MANIFEST.in").read_text("utf-8").split())
    rooms = {path.name for path in (ROOT / "src" / "featherfed").iterdir() if path.is_dir()}
    assert rooms - {"__pycache__"} <= grafted


def test_a_wheel_built_through_the_sdist_imports_whole(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    clean = tmp_path / "clean"
    venv.create(clean)
    python = clean / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    clear = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True, env=clear)
    # The dependencies from here, but not this checkout: a path file inside a path is not read.
    (packages,) = clean.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    code = """
import importlib, pathlib, featherfed
(folder,) = map(pathlib.Path, featherfed.__path__)
assert 'clean' in folder.parts, folder
paths = sorted(folder.rglob('*.py'))
for path in paths:
    parts = [p for p in path.relative_to(folder).with_suffix('').parts if p != '__init__']
    try:
        importlib.import_module('.'.join(['featherfed', *parts]))
    except ModuleNotFoundError as error:
        if error.name not in ('ray', 'wandb'):  # of extras that are not for tests
            raise
print(len(paths))
"""
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False, env=clear
    )
    assert done.returncode == 0, done.stderr
    packages_listed = (ROOT / "pyproject.toml").read_text("utf-8")
    folders = [
        folder
        for folder in ROOT.iterdir()
        if folder.is_dir() and f'"featherfed.{folder.name}"' in packages_listed
    ]
    here = [path for folder in folders for path in folder.rglob("*.py")]
    assert int(done.stdout) == 1 + len(here), "every module is in the wheel"
    typed = {f"{folder.name}/py.typed" for folder in folders} | {"py.typed"}
    assert typed <= {
        p.relative_to(packages / "featherfed").as_posix()
        for p in (packages / "featherfed").rglob("py.typed")
    }
    assert (packages / "featherfed" / "report" / "run.html").exists()
    assert (packages / "featherfed" / "report" / "colors.css").exists()
    assert (packages / "featherfed" / "report" / "chart.svg").exists()
    assert (packages / "featherfed" / "report" / "card.md").exists()
    assert (packages / "featherfed" / "server" / "storage" / "schema.sql").exists()
