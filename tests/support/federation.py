"""A whole federation without TensorFlow: the real server, gRPC and sessions, a tiny numpy model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from support.clients import Pull, profile
from support.engines import open_store
from support.evaluator import DistanceEvaluator
from support.models import MANIFEST, TASK

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.edge_client.transport import Transport
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.evaluation import Evaluator
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.coordinator.model_files import Quantizer
from featherfed.server.loop import serve
from featherfed.server.rounds.clock import SteadyClock
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.transfers.releases import Releases
from featherfed.tasks.task import Task


def settings(directory: Path, **changes: object) -> Settings:
    data: dict[str, object] = {
        "name": "test",
        "output": str(directory),
        "rounds": 3,
        "server": {"port": 0, "linger": 5},
        "clients": {"minimum": 3, "quorum": 1.0, "deadline": 30, "patience": 1},
    }
    evaluation = {"dataset": "digits", **changes.pop("evaluation", {})}  # type: ignore[dict-item]
    return Settings.model_validate({**data, **changes, "evaluation": evaluation})


_DISTANCE = DistanceEvaluator()


class Federation:
    """One run's server in a thread; clients are sessions in the caller's threads."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        first_weights: Sequence[Array] | None = None,
        step: ExportedStep | None = None,
        manifest: Manifest = MANIFEST,
        task: Task = TASK,
        evaluator: Evaluator | None = _DISTANCE,
        quantizer: Quantizer | None = None,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.store = open_store(directory)
        plan = make_plan(settings, task, "{}", manifest)
        self.coordinator = Coordinator(
            settings, self.store, plan, manifest, task, evaluator, SteadyClock(),
            first_weights, secret=1, step=step, quantizer=quantizer,
        )  # fmt: skip
        self.releases = Releases(
            directory / "releases", ("int8",), lambda: self.coordinator.newest_version, self.release
        )
        self.address = ""
        self.finished = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def release(self, kind: str) -> tuple[int, bytes]:
        """Return the newest version and a stand-in for its .tflite: the weights as int8."""
        version, weights = self.coordinator.newest_model()
        codes = [np.clip(np.rint(w * 500), -127, 127).astype(np.int8) for w in weights]
        return version, b"TFL3" + b"".join(c.tobytes() for c in codes)

    def start(self) -> Federation:
        self._thread.start()
        assert self._ready.wait(60)
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

    def run_clients(self, *sessions: Session) -> list[HeldModel]:
        """Run sessions side by side to the end; return the final model each holds."""
        waiting = RuntimeError("still running after a minute")
        results: list[HeldModel | BaseException] = [waiting] * len(sessions)

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
