"""The arrows of docs/design.md, and that each part imports with the others' dependencies absent."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.rooms import ROOT, arrows, imports, modules, relative

FOLDERS = {
    "compression": set[str](),
    "proto": set[str](),
    "tasks": {"proto"},
    "datasets": {"tasks"},
    "report": {"compression", "tasks"},
    "models": {"compression", "datasets", "proto", "tasks"},
    "exporter": {"models", "proto", "tasks"},
    "server": {"compression", "proto", "tasks"},
    "page": {"report", "server"},
    "edge_client": {"compression", "proto", "datasets", "models", "tasks"},
    "sweep": {"compression", "proto", "server", "edge_client", "tasks"},
    "api": {
        "compression",
        "proto",
        "datasets",
        "page",
        "report",
        "models",
        "server",
        "edge_client",
        "exporter",
        "sweep",
        "tasks",
    },
    "simulator": {"api", "compression", "proto", "server", "edge_client", "cli", "tasks"},
    "cli": {
        "api",
        "compression",
        "proto",
        "datasets",
        "report",
        "models",
        "server",
        "edge_client",
        "exporter",
        "sweep",
        "tasks",
    },
}
ROOMS = {
    "compression": set[str](),
    "compression/stages": {"compression"},
    "compression/registry": {"compression", "compression/stages"},
    "compression/exchange": {"compression", "compression/registry", "compression/stages"},
    "server/errors": set[str](),
    "server/rounds": set[str](),
    "server/settings": {"server/errors", "server/rounds"},
    "server/storage": {"server/errors", "server/rounds"},
    "server/access": {"server/errors", "server/settings"},
    "server/aggregation": {"server/errors", "server/settings", "server/storage"},
    "server/observability": {"server/errors", "server/rounds", "server/settings", "server/storage"},
    "server/coordinator": {
        "server/errors",
        "server/rounds",
        "server/settings",
        "server/storage",
        "server/access",
        "server/aggregation",
        "server/observability",
    },
    "server/transfers": {
        "server/errors",
        "server/storage",
        "server/observability",
        "server/coordinator",
    },
    "server/rpc": {
        "server/errors",
        "server/settings",
        "server/storage",
        "server/access",
        "server/observability",
        "server/coordinator",
        "server/transfers",
    },
    "server/loop": {
        "server/errors",
        "server/rounds",
        "server/storage",
        "server/observability",
        "server/coordinator",
        "server/transfers",
        "server/rpc",
    },
}
"""The rooms inside two folders, and which rooms of the same folder each may import."""
GRPC = ("server/rpc/", "edge_client/grpc_connection.py", "simulator/")
TENSORFLOW = {"tensorflow", "tf_keras", "tensorflow_model_optimization", "keras"}
ONLY_IN = {
    "constriction": {"compression/stages/range.py"},
    "dp_accounting": {"server/aggregation/accountant.py"},
    "tensorboardX": {"api/trackers/tensorboard.py"},
    "mlflow": {"api/trackers/mlflow.py"},
    "wandb": {"api/trackers/wandb.py"},
    "opentelemetry": {"api/trackers/otel.py"},
    "starlette": {"page/app.py", "page/stream.py", "page/guard.py"},
    "uvicorn": {"page/server.py"},
    "psycopg": {
        "server/storage/postgres.py",
        "server/storage/postgres_connection.py",
        "server/storage/postgres_copy.py",
        "server/storage/postgres_schema.py",
    },
    "pydantic": {
        "server/settings/section.py",
        "server/settings/settings.py",
        "server/settings/task.py",
        "sweep/grid.py",
        "report/schema.py",
    },
}
"""Packages, and all the files that import them."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    for path in modules(folder):
        for name in imports(path):
            first, _, rest = name.partition(".")
            if first == "featherfed":
                target = rest.split(".")[0]
                assert target in FOLDERS[folder] | {folder}, f"{relative(path)} imports {name}"
                if target == "proto" and folder in ("models", "exporter"):
                    plain = (
                        "proto.plan_terms.",
                        "proto.peer_text.",
                        "proto.step_file.",
                    )  # not the messages
                    assert rest.startswith(plain), f"{relative(path)} imports {name}"
                if target == "compression" and folder == "report":
                    assert rest.startswith("compression.files."), f"{relative(path)} imports {name}"
                if target == "tasks" and folder == "report":
                    plain = ("tasks.errors.", "tasks.metrics.")
                    assert rest.startswith(plain), f"{relative(path)} imports {name}"
                if target == "models" and folder == "edge_client":
                    assert path.name == "keras_trainer.py", f"{relative(path)} imports {name}"


def test_the_design_lists_what_each_folder_may_import() -> None:
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    for folder, allowed in FOLDERS.items():
        names = ", ".join(f"`{name}`" for name in sorted(allowed))
        if allowed == set(FOLDERS) - {folder}:
            names = "all of them"
        assert f"| `{folder}` | {names} |".replace("  ", " ") in design


def test_a_room_imports_only_what_it_may() -> None:
    found = arrows(["compression", "server"])
    assert set(found) == set(ROOMS), "a new room needs an entry in ROOMS"
    for room, targets in found.items():
        inside = {t for t in targets if t.split("/")[0] == room.split("/")[0]}
        assert inside <= ROOMS[room], f"{room} imports {sorted(inside - ROOMS[room])}"


def test_no_rooms_import_each_other_in_a_circle() -> None:
    TopologicalSorter(arrows(FOLDERS)).prepare()  # raises CycleError, which names the circle


def test_heavy_packages_are_known_where_it_is_their_job() -> None:
    for folder in FOLDERS:
        for path in modules(folder):
            firsts = {name.split(".")[0] for name in imports(path)}
            where = relative(path)
            if firsts & {"grpc", "grpc_health", "grpc_reflection"}:
                assert where.startswith(GRPC), where
            if firsts & TENSORFLOW:
                assert folder in ("models", "exporter") or where == "api/runtime.py", where
            for package, files in ONLY_IN.items():
                assert (package in firsts) == (where in files), f"{where}: {package}"
            if folder == "compression":
                ours = {"numpy", "backports", "featherfed"}
                if where == "compression/stages/range.py":
                    ours.add("constriction")
                if where == "compression/stages/zstd.py":
                    ours.add("compression")  # Python's own, from 3.14 on
                assert firsts <= ours | set(sys.stdlib_module_names), f"{where}: {firsts}"


def test_the_folders_hold_no_init_and_the_list_of_packages_is_complete() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    found = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "benchmarks", "examples"}
    assert found == set(FOLDERS)
    for folder in [*FOLDERS, "tests"]:
        assert not list((ROOT / folder).rglob("__init__.py"))
        for path in modules(folder) if folder in FOLDERS else ():
            package = "featherfed." + relative(path.parent).replace("/", ".")
            assert f'"{package}",' in pyproject, f"{package} is not in pyproject.toml's packages"
            assert (path.parent / "py.typed").exists(), f"{package} does not say that it is typed"


def test_the_package_is_a_link_to_each_folder() -> None:
    package = ROOT / "src" / "featherfed"
    if (ROOT / "PKG-INFO").exists():
        pytest.skip("a source archive holds files in place of links")
    links = {path.name: path.readlink() for path in package.iterdir() if path.is_symlink()}
    assert links == {folder: Path("../..") / folder for folder in FOLDERS}
    files = {path.name for path in package.iterdir() if path.is_file()}
    assert files == {"__init__.py", "py.typed"}


BASE = {"numpy", "backports", "grpc", "google", "tenacity", "click", "tqdm"}
EDGE = BASE | {"ai_edge_litert", "psutil", "zeroconf"}
CLI = {"click", "tqdm"}
SERVER = (BASE - CLI) | {
    "pydantic", "grpc_health", "grpc_reflection", "prometheus_client", "cryptography",
}  # fmt: skip
PARTS = {
    "featherfed.compression.registry": {"numpy", "backports"},
    "featherfed.compression.exchange.update": {"numpy", "backports"},
    "featherfed.edge_client.platform": set[str](),
    "featherfed.edge_client.session": BASE - CLI,
    "featherfed.edge_client.follower": {"numpy", "backports"},
    "featherfed.edge_client.grpc_transport": BASE - CLI,
    "featherfed.edge_client.grpc_releases": BASE - CLI,
    "featherfed.edge_client.litert_trainer": BASE - CLI,
    "featherfed.cli.follow": BASE,
    "featherfed.models.tflite": {"numpy"},
    "featherfed.models.measure": {"numpy"},
    "featherfed.cli.main": {"click"},
    "featherfed": set[str](),
    "featherfed.api.client": EDGE - {"click"},
    "featherfed.api.extras": set[str](),
    "featherfed.api.join": EDGE - {"click"},
    "featherfed.cli.watch": {"numpy", "pydantic", "rich", "click"},
    "featherfed.api.trackers.following": SERVER,
    "featherfed.cli.predict": EDGE - {"psutil", "zeroconf"},
    "featherfed.datasets.sources": {"numpy"},
    "featherfed.datasets.partition": {"numpy"},
    "featherfed.tasks.message": {"numpy", "google"},
    "featherfed.server.loop": SERVER,
    "featherfed.server.observability.metrics_json": SERVER,
    "featherfed.server.observability.snapshot": SERVER,
    "featherfed.page.server": SERVER | {"starlette", "uvicorn"},
    "featherfed.page.live_sections": {"numpy", "jinja2", "pydantic", "PIL"},
    "featherfed.report.render": {"numpy", "jinja2", "pydantic", "PIL"},
    "featherfed.report.comparison": {"numpy", "pydantic"},
}
HEAVY = [
    "tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "sklearn", "matplotlib",
    "jinja2", "pydantic", "grpc_health", "grpc_reflection", "PIL", "rich", "click", "tqdm",
    "tomli_w", "pyarrow", "grpc", "tenacity", "backports", "ai_edge_litert", "psutil", "zeroconf",
    "dp_accounting", "prometheus_client", "pythonjsonlogger", "cryptography", "uvloop",
    "tensorboardX", "mlflow", "wandb", "opentelemetry",
    "starlette", "uvicorn", "psycopg",
]  # fmt: skip


@pytest.mark.parametrize("module", PARTS)
def test_a_part_imports_without_the_others_dependencies(module: str) -> None:
    absent = sorted(set(HEAVY) - PARTS[module] - transitive(PARTS[module]))
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import {module}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def transitive(names: set[str]) -> set[str]:
    """What those packages themselves import if it is there."""
    needs = {"matplotlib": {"PIL"}, "uvicorn": {"click"}}
    return set().union(*(needs.get(name, set()) for name in names))
