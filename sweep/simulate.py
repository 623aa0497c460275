"""One whole federation in one process: real coordinator, sessions, codecs and ledger, no gRPC."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.trainer import Trainer
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.evaluation import Evaluator
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.observability.metrics_json import collect, final
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.sweep.local import LocalServer, LocalTransport
from featherfed.sweep.memory_state import HeldModels, MemoryState
from featherfed.tasks.task import Task

MakeClientTrainer = Callable[[str, pb.Plan, Manifest, bytes | None], Trainer]
"""(client name, plan, manifest, training step) -> that client's `Trainer`."""


def simulate(
    settings: Settings,
    *,
    model_json: str,
    manifest: Manifest,
    task: Task,
    clients: Mapping[str, pb.DataSummary],
    make_trainer: MakeClientTrainer,
    evaluator: Evaluator | None = None,
    first_weights: list[Array] | None = None,
    on_round: Callable[[int, Mapping[str, float]], bool | None] = lambda round_, scores: None,
    on_begun: Callable[[Coordinator], None] = lambda coordinator: None,
    on_finished: Callable[[Coordinator], None] = lambda coordinator: None,
    extra: dict[str, Any] | None = None,
    runtime: str = "keras",
    step: ExportedStep | None = None,
) -> dict[str, Any]:
    """Run `settings` to the end; return the content of metrics.json (docs/metrics.md).

    Cohorts and slots follow from the run's seed, so equal settings and trainers give equal digests.
    `clients`: what each says of its data, statistics included if the task standardises.
    `evaluator`: None if clients evaluate. `on_round` gets a new version's number and the newest
    scores, loss and metrics by name, none before clients have evaluated a version; if it returns
    True, that round is the last. `on_begun` gets the run before its first round, `on_finished` as
    it has ended, with the final model. `runtime`: what clients say they train with; those with
    LiteRT get `step`. `extra`: more top-level entries of the result. Clients run one at a time and
    the clock stands still, so no client is ever late; what clients keep stays in memory. Raises the
    first error that a client raises.
    """
    with tempfile.TemporaryDirectory(prefix="featherfed-") as scratch:
        store = Store(Path(scratch) / "run.db")
        try:
            coordinator = Coordinator(
                settings,
                store,
                make_plan(settings, task, model_json, manifest),
                manifest,
                task,
                evaluator,
                lambda: 0.0,
                first_weights=first_weights,
                secret=settings.seed,
                step=step,
            )

            def is_enough(round_: int, scores: Mapping[str, float]) -> bool:
                return bool(on_round(round_, scores))

            coordinator.run.is_enough = is_enough
            on_begun(coordinator)
            server = LocalServer(coordinator)
            versions: HeldModels = WeakValueDictionary()
            methods = (settings.optimization.method,)
            sessions = [
                Session(
                    Profile(name, data, runtime, methods, "0"),
                    LocalTransport(server),
                    partial(make_trainer, name),
                    partial(MemoryState, versions, Path(scratch) / name),
                )
                for name, data in clients.items()
            ]
            held = _run_all(server, sessions)
            coordinator.final_evaluation.settle()
            coordinator.run.on_phase()  # scores of the last version are known now
            newest = store.versions.newest()
            assert all(h.digest == newest.digest for h in held), "a client holds another model"
            metrics: dict[str, Any] = collect(store, settings, task, manifest, extra or {})
            metrics["final"] = final(store, settings, task, 0.0, [])
            on_finished(coordinator)
            return metrics
        finally:
            store.close()


def _run_all(server: LocalServer, sessions: list[Session]) -> list[HeldModel]:
    held: list[HeldModel] = []
    errors: list[BaseException] = []

    def run(session: Session) -> None:
        with server.lock:
            try:
                held.append(session.run())
            except BaseException as error:
                errors.append(error)
                server.fail()

    threads = [threading.Thread(target=run, args=(s,), daemon=True) for s in sessions]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        server.fail()
        for thread in threads:  # each ends at its next call
            thread.join()
        raise
    if errors:
        raise errors[0]
    return held
