"""The server of numpy_federation.py, which may kill itself at named places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.evaluator import Judge
from support.models import CLASSES, SHAPE
from support.numpy_federation import Spec

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.admission import DataShape
from featherfed.server.coordinator.coordinator import Coordinator, Delivery
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.rounds.clock import SteadyClock
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import Entry, Update, Version
from featherfed.server.storage.store import Store


class KillableEvaluator(Judge):
    """The small evaluator, with a place at which the server may kill itself."""

    def __init__(self, kill_point: Callable[[str], None]) -> None:
        self._kill_point = kill_point

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return the small evaluator's result, unless the server dies here."""
        self._kill_point("server: in mid-aggregation")
        return super().evaluate(weights)


def build(  # noqa: C901 - one class for each layer in which the server may die
    directory: Path, spec: Spec, manifest: Manifest, kill_point: Callable[[str], None]
) -> tuple[Coordinator, Store]:
    """Return the coordinator and store of a new run, or of the run that `directory` holds."""

    class KillableStore(Store):
        def add_update(self, update: Update) -> None:
            super().add_update(update)
            kill_point("server: in the journal's transaction")

        def add_version(self, version: Version, *rest: Any) -> None:
            super().add_version(version, *rest)
            if version.version:
                kill_point("server: in the version's transaction")

        def open_round(self, *args: Any) -> None:
            super().open_round(*args)
            kill_point("server: in the opening's transaction")

        def count(self, *entries: Entry) -> None:
            super().count(*entries)
            if any(e.direction == "downlink" and e.kind == "transfer" for e in entries):
                kill_point("server: the model is sent")

    class KillableCoordinator(Coordinator):
        def join(self, request: pb.JoinRequest) -> pb.JoinReply:
            reply = super().join(request)
            kill_point("server: joined, before the answer")
            return reply

        def fetch(self, client: str, request: pb.FetchModelRequest) -> Delivery:
            found = super().fetch(client, request)
            kill_point("server: before the model is sent")
            return found

        def submit(self, *args: Any) -> pb.Outcome:
            kill_point("server: received, before the journal")
            outcome = super().submit(*args)
            kill_point("server: journaled, before the acknowledgement")
            return outcome

        def aggregate(self) -> None:
            super().aggregate()
            kill_point("server: aggregated, before anyone hears of it")

    settings = Settings.model_validate({"output": str(directory), **spec.settings})
    store = KillableStore(directory / "run.db")
    plan = make_plan(settings, "{}", manifest)
    shape = DataShape(SHAPE, CLASSES)
    evaluator = KillableEvaluator(kill_point)
    coordinator = KillableCoordinator(
        settings, store, plan, manifest, shape, evaluator, SteadyClock(), secret=1
    )
    return coordinator, store
