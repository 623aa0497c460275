"""A whole federation without TensorFlow: the real server, gRPC and sessions, a tiny numpy model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, Uniform
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState, Held
from featherfed.edge_client.trainer import Trained
from featherfed.edge_client.transport import Transport
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.admission import DataShape
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.coordinator.training_step import OfferedStep
from featherfed.server.loop import serve
from featherfed.server.rounds.clock import SteadyClock
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.server.transfers.releases import Releases

MANIFEST = Manifest(
    (
        TensorSpec("kernel", (48, 64), initial=Uniform(0.1), prunable=True),
        TensorSpec("bias", (64,)),
        TensorSpec("variance", (64,), Role.NONNEGATIVE),
    )
)
SHAPE = (8, 8, 1)
CLASSES = tuple("abcdefghij")


class Pull:
    """A trainer whose update is known: a step from the weights towards the client's own value."""

    def __init__(self, value: float, on_train: Callable[[pb.Train], None] | None = None) -> None:
        self.value = value
        self.on_train = on_train

    def train(self, weights: Sequence[Array], task: pb.Train) -> Trained:
        if self.on_train:
            self.on_train(task)
        moved = [w + np.float32(0.5) * (np.float32(self.value) - w) for w in weights]
        if task.sparsity:
            moved[0] = np.where(weights[0] == 0, np.float32(0), moved[0])
        return Trained(moved, 0.5, 0.75)


class Judge:
    """An evaluator that says how far the weights are from one."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        loss = float(np.mean([np.mean((w - 1) ** 2) for w in weights]))
        return Evaluation(loss, 1 / (1 + loss), json.dumps([0.5, 0.5]))


def settings(directory: Path, **changes: object) -> Settings:
    data: dict[str, object] = {
        "name": "test",
        "output": str(directory),
        "rounds": 3,
        "server": {"port": 0, "linger": 5},
        "clients": {"minimum": 3, "quorum": 1.0, "deadline": 30, "patience": 1},
    }
    return Settings.model_validate({**data, **changes})


class Federation:
    """One run's server in a thread; clients are sessions in the caller's threads."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        first_weights: Sequence[Array] | None = None,
        step: OfferedStep | None = None,
        manifest: Manifest = MANIFEST,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.store = Store(directory / "run.db")
        plan = make_plan(settings, "{}", manifest)
        shape = DataShape(SHAPE, CLASSES)
        self.coordinator = Coordinator(
            settings, self.store, plan, manifest, shape, Judge(), SteadyClock(),
            first_weights, secret=1, step=step,
        )  # fmt: skip
        self.releases = Releases(
            directory / "releases", ("int8",), lambda: self.coordinator.newest_version, self.release
        )
        self.address = ""
        self.finished = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def release(self, kind: str) -> tuple[int, bytes]:
        """Stands for a .tflite: the newest weights as int8."""
        version, weights = self.coordinator.newest_model()
        codes = [np.clip(np.rint(w * 500), -127, 127).astype(np.int8) for w in weights]
        return version, b"TFL3" + b"".join(c.tobytes() for c in codes)

    def start(self) -> Federation:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def _listening(self, address: str) -> None:
        self.address = address
        self._ready.set()

    def _serve(self) -> None:
        self.finished = asyncio.run(self._serve_until_stopped())

    async def _serve_until_stopped(self) -> bool:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        return await serve(
            self.coordinator,
            self.releases,
            on_listening=self._listening,
            on_round=lambda: None,
            on_finished=lambda: None,
            stop=self._stop,
        )

    def close(self) -> None:
        """Stop the server, if it still runs, and close its store."""
        with contextlib.suppress(RuntimeError):  # its loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self.join()
        self.releases.close()
        self.store.close()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def transport(self) -> GrpcTransport:
        return GrpcTransport(self.address, give_up_after=10)

    def client(
        self,
        name: str,
        value: float = 1.0,
        num_examples: int = 100,
        trainer: Pull | None = None,
        transport: Transport | None = None,
    ) -> Session:
        return Session(
            profile(name, num_examples),
            transport or self.transport(),
            lambda plan, manifest, step: trainer or Pull(value),
            lambda run: ClientState(self.directory / "clients" / name, run),
        )

    def run_clients(self, *sessions: Session) -> list[Held]:
        """Run sessions side by side to the end; return the final model each holds."""
        waiting = RuntimeError("still running after a minute")
        results: list[Held | BaseException] = [waiting] * len(sessions)

        def run(index: int) -> None:
            try:
                results[index] = sessions[index].run()
            except BaseException as error:
                results[index] = error

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(sessions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        errors = [r for r in results if isinstance(r, BaseException)]
        if errors:  # one that failed may be why the others were still waiting
            raise min(errors, key=lambda error: error is waiting)
        return [r for r in results if not isinstance(r, BaseException)]


def profile(name: str, num_examples: int = 100, shape: tuple[int, ...] = SHAPE) -> Profile:
    data = pb.DataSummary(num_examples=num_examples, example_shape=shape, num_classes=10)
    return Profile(name, data, "numpy", ("none", "prune"), "0")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache of exported steps for all tests, and not the person's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A command in this process may block SIGTERM; what later tests start must not inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """Start federations with changed settings; all are closed at the end of the test."""
    made: list[Federation] = []

    def start(
        folder: str = "run",
        first_weights: Sequence[Array] | None = None,
        step: OfferedStep | None = None,
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
