"""Fixtures that several test files use."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.coordinator import DirectRun, Run
from support.engines import on_postgres
from support.federation import Federation, settings
from support.models import MANIFEST
from support.postgres import PostgresServer, programs

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.server.coordinator.exported_step import ExportedStep

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in background jobs of a shell; processes that tests start would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache of exported steps for all tests of all workers, and not the person's own."""
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        yield


LONG = {
    f"test_{name}.py"
    for name in (
        "accuracy", "readme", "sweep", "processes", "export_command", "lasting_results",
        "table_runs", "staying_clients", "cli", "more_rounds", "edge_install", "exporter",
        "transfer_learning", "kills",
    )
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long tests, so that at the end no worker waits for another's."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """Keep what is imported by now, TensorFlow mostly, out of the converter's own collections."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A command in this process may block SIGTERM; what later tests start must not inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the tests' own; who stops it starts it again."""
    pytest.importorskip("psycopg", reason="needs the extra [postgres]")
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server is installed; Debian's package is postgresql")
    server = PostgresServer(found)
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with the runs of this process in SQLite, and again in PostgreSQL."""
    if request.param == "sqlite":
        yield "sqlite"
        return
    with on_postgres(request.getfixturevalue("postgres").dsn):
        yield "postgres"


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """Start federations with changed settings; all are closed at the end of the test."""
    made: list[Federation] = []

    def start(
        folder: str = "run",
        first_weights: Sequence[Array] | None = None,
        step: ExportedStep | None = None,
        manifest: Manifest = MANIFEST,
        **changes: object,
    ) -> Federation:
        directory = tmp_path / folder
        directory.mkdir(exist_ok=True)
        made.append(
            Federation(directory, settings(directory, **changes), first_weights, step, manifest)
        )
        return made[-1].start()

    yield start
    for one in made:
        one.close()


@pytest.fixture
def direct_run(tmp_path: Path) -> Iterator[Callable[..., DirectRun]]:
    made: list[DirectRun] = []

    def make(folder: str = "run", clients: int = 5, **changes: object) -> DirectRun:
        both = {"clients": {"minimum": clients, "quorum": 1.0, "patience": 0}, **changes}
        made.append(DirectRun(tmp_path / folder, **both))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def start(clock: Callable[[], float], **changes: object) -> Run:
        made.append(Run(tmp_path, clock, **changes))
        return made[-1]

    yield start
    for one in made:
        one.store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
