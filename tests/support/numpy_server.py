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
from featherfed.server.coordinator.admission import DataShape
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.rounds.clock import SteadyClock
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store


class FaultyJudge(DistanceEvaluator):
    """The small evaluator, with a place where the server may die."""

    def __init__(self, fault: Callable[[str], None]) -> None:
        self._fault = fault

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return a figure that follows from the weights."""
        self._fault("server: in mid-aggregation")
        return super().evaluate(weights)


def build(
    directory: Path, spec: Spec, manifest: Manifest, fault: Callable[[str], None]
) -> tuple[Coordinator, Store]:
    """Return a run's coordinator and store, created or taken up, with places where it may die."""
    settings = Settings.model_validate({"output": str(directory), **spec.settings})
    store = Store(directory / "run.db")
    die_after(store.journal, "add_update", fault, "server: in the journal's transaction")
    die_after(store.journal, "open_round", fault, "server: in the opening's transaction")
    die_after(
        store.versions, "add", fault, "server: in the version's transaction",
        lambda version, *rest: bool(version.version),
    )  # fmt: skip
    die_after(
        store.ledger, "count", fault, "server: the model is sent",
        lambda *entries: any((e.direction, e.kind) == ("downlink", "transfer") for e in entries),
    )  # fmt: skip
    plan = make_plan(settings, "{}", manifest)
    coordinator = Coordinator(
        settings, store, plan, manifest, DataShape(SHAPE, CLASSES), FaultyJudge(fault),
        SteadyClock(), secret=1,
    )  # fmt: skip
    die_after(coordinator.admission, "join", fault, "server: joined, before the answer")
    die_before(coordinator.updates, "submit", fault, "server: received, before the journal")
    die_after(coordinator.updates, "submit", fault, "server: journaled, before the acknowledgement")
    die_after(
        coordinator.closing, "aggregate", fault, "server: aggregated, before anyone hears of it"
    )
    return coordinator, store


def die_after(
    part: object,
    method: str,
    fault: Callable[[str], None],
    place: str,
    applies: Callable[..., bool] = lambda *args: True,
) -> None:
    """Reach `place` after each call of a part's method whose arguments apply."""
    original = getattr(part, method)

    def wrapper(*args: Any) -> Any:
        result = original(*args)
        if applies(*args):
            fault(place)
        return result

    setattr(part, method, wrapper)


def die_before(part: object, method: str, fault: Callable[[str], None], place: str) -> None:
    """Reach `place` before each call of a part's method."""
    original = getattr(part, method)

    def wrapper(*args: Any) -> Any:
        fault(place)
        return original(*args)

    setattr(part, method, wrapper)
