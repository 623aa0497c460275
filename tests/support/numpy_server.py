"""The server of numpy_federation.py, which may kill itself at named places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.evaluator import DistanceEvaluator
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


class FaultyJudge(DistanceEvaluator):
    """The small evaluator, with a place where the server may die."""

    def __init__(self, fault: Callable[[str], None]) -> None:
        self._fault = fault

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return a figure that follows from the weights."""
        self._fault("server: in mid-aggregation")
        return super().evaluate(weights)


def build(  # noqa: C901 - the places where it may die, one beside the other
    directory: Path, spec: Spec, manifest: Manifest, fault: Callable[[str], None]
) -> tuple[Coordinator, Store]:
    """Return the run's coordinator and store, begun or gone on with."""

    class FaultyStore(Store):
        def add_update(self, update: Update) -> None:
            super().add_update(update)
            fault("server: in the journal's transaction")

        def add_version(self, version: Version, *rest: Any) -> None:
            super().add_version(version, *rest)
            if version.version:
                fault("server: in the version's transaction")

        def open_round(self, *args: Any) -> None:
            super().open_round(*args)
            fault("server: in the opening's transaction")

        def count(self, *entries: Entry) -> None:
            super().count(*entries)
            if any(e.direction == "downlink" and e.kind == "transfer" for e in entries):
                fault("server: the model is sent")

    class FaultyCoordinator(Coordinator):
        def join(self, request: pb.JoinRequest) -> pb.JoinReply:
            reply = super().join(request)
            fault("server: joined, before the answer")
            return reply

        def fetch(self, client: str, request: pb.FetchModelRequest) -> Delivery:
            found = super().fetch(client, request)
            fault("server: before the model is sent")
            return found

        def submit(self, *args: Any) -> pb.Outcome:
            fault("server: received, before the journal")
            outcome = super().submit(*args)
            fault("server: journaled, before the acknowledgement")
            return outcome

        def aggregate(self) -> None:
            super().aggregate()
            fault("server: aggregated, before anyone hears of it")

    settings = Settings.model_validate({"output": str(directory), **spec.settings})
    store = FaultyStore(directory / "run.db")
    plan = make_plan(settings, "{}", manifest)
    shape = DataShape(SHAPE, CLASSES)
    coordinator = FaultyCoordinator(
        settings, store, plan, manifest, shape, FaultyJudge(fault), SteadyClock(), secret=1
    )
    return coordinator, store
