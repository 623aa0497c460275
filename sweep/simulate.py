"""One whole federation without gRPC: real coordinator, sessions, codecs and ledger."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.session import Profile, Session
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.evaluation import Evaluator
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.observability.metrics_json import collect, final
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.sweep.client_processes import run_in_processes
from featherfed.sweep.client_worker import MakeClientTrainer, Share
from featherfed.sweep.local import LocalServer, LocalTransport
from featherfed.sweep.memory_state import HeldModels, MemoryState
from featherfed.sweep.sessions import run_sessions
from featherfed.sweep.waiting import check_waits_for_all
from featherfed.tasks.task import Task


@dataclass(frozen=True)
class Workers:
    """Processes in which clients train side by side; a client stays in one of them.

    `trainers_of`: (some clients' names) -> what makes their trainers there; it can be pickled.
    """

    number: int
    trainers_of: Callable[[Sequence[str]], MakeClientTrainer]


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
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Run `settings` to the end; return the content of metrics.json (docs/metrics.md).

    Cohorts and slots follow from the run's seed, so equal settings and trainers give equal digests.
    `clients`: what each says of its data, statistics included if the task standardises.
    `evaluator`: None if clients evaluate. `on_round` gets a new version's number and the newest
    scores, loss and metrics by name, none before clients have evaluated a version; if it returns
    True, that round is the last. `on_begun` gets the run before its first round, `on_finished` as
    it has ended, with the final model. `runtime`: what clients say they train with; those with
    LiteRT get `step`. `extra`: more top-level entries of the result. Clients run one at a time, or
    in `workers`, and the clock stands still, so no client is ever late; what clients keep stays in
    memory. Raises the first error that a client raises; with workers also WorkerDied, and
    ServerError if rounds do not wait for all clients.
    """
    if workers is not None:
        check_waits_for_all(settings, len(clients))
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
            methods = (settings.optimization.method,)
            profiles = [
                Profile(name, data, runtime, methods, "0") for name, data in clients.items()
            ]
            if workers is None:
                digests = _run_here(server, profiles, make_trainer, Path(scratch))
            else:
                digests = run_in_processes(server, _shares(profiles, workers, Path(scratch)))
            coordinator.final_evaluation.settle()
            coordinator.run.on_phase()  # scores of the last version are known now
            newest = store.versions.newest()
            assert set(digests) == {newest.digest}, "a client holds another model"
            metrics: dict[str, Any] = collect(store, settings, task, manifest, extra or {})
            metrics["final"] = final(store, settings, task, 0.0, [])
            on_finished(coordinator)
            return metrics
        finally:
            store.close()


def _run_here(
    server: LocalServer, profiles: Sequence[Profile], make: MakeClientTrainer, scratch: Path
) -> list[bytes]:
    """Run all clients in this process; return the digests of the models they end with."""
    versions: HeldModels = WeakValueDictionary()
    sessions = [
        Session(
            profile,
            LocalTransport(server),
            partial(make, profile.name),
            partial(MemoryState, versions, scratch / profile.name),
        )
        for profile in profiles
    ]
    held = run_sessions(sessions, server.lock, lambda error: server.fail())
    return [model.digest for model in held]


def _shares(profiles: Sequence[Profile], workers: Workers, scratch: Path) -> list[Share]:
    """Deal the clients out to workers, to none of them no client."""
    number = min(workers.number, len(profiles))
    dealt = [tuple(profiles[first::number]) for first in range(number)]
    return [
        Share(part, workers.trainers_of([profile.name for profile in part]), scratch)
        for part in dealt
    ]
