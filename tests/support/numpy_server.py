"""The server of numpy_federation.py, which may kill itself at named places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from support.evaluator import DistanceEvaluator
from support.models import TASK
from support.numpy_federation import Spec

from featherfed.api.front_end import StandbyCalls
from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.rounds.clock import SteadyClock
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.postgres_address import PostgresAddress
from featherfed.server.storage.store import Store
from featherfed.server.transfers.deliveries import Deliveries


class KillableEvaluator(DistanceEvaluator):
    """The small evaluator, with a place where the server may die."""

    def __init__(self, kill_point: Callable[[str], None]) -> None:
        self._kill_point = kill_point

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        """Return a figure that follows from the weights."""
        self._kill_point("server: in mid-aggregation")
        return super().evaluate(weights)


def build(
    directory: Path, spec: Spec, manifest: Manifest, kill_point: Callable[[str], None]
) -> tuple[Coordinator, Store]:
    """Return a run's coordinator and store, created or taken up, with places where it may die."""
    settings = Settings.model_validate(
        {"output": str(directory), "evaluation": {"dataset": "digits"}, **spec.settings}
    )
    postgres = PostgresAddress(spec.postgres) if spec.postgres else None
    with closing(StandbyCalls(settings)) as front:
        store = Store(directory / "run.db", postgres=postgres, standby=front.follow)
    die_after(store.journal, "add_update", kill_point, "server: in the journal's transaction")
    die_after(store.journal, "open_round", kill_point, "server: in the opening's transaction")
    die_after(
        store.versions, "add", kill_point, "server: in the version's transaction",
        lambda version, *rest: bool(version.version),
    )  # fmt: skip
    die_after(
        store.publications, "write_file", kill_point,
        "server: the file counts the version, the database does not",
        lambda *args: bool(store.versions.newest().version),
    )  # fmt: skip
    die_after(
        store.ledger, "count", kill_point, "server: the model is sent",
        lambda *entries: any((e.direction, e.kind) == ("downlink", "transfer") for e in entries),
    )  # fmt: skip
    plan = make_plan(settings, TASK, "{}", manifest)
    coordinator = Coordinator(
        settings, store, plan, manifest, TASK, KillableEvaluator(kill_point),
        SteadyClock(), secret=1,
    )  # fmt: skip
    place = "server: joined, before the answer"
    die_after_commit(store, coordinator.admission, "join", kill_point, place)
    die_before(coordinator.updates, "decode", kill_point, "server: received, before the journal")
    place = "server: journaled, before the acknowledgement"
    die_after_commit(store, coordinator.updates, "accept", kill_point, place)
    place = "server: aggregated, before anyone hears of it"
    die_after(coordinator.closing, "aggregate", kill_point, place)
    die_after(Deliveries, "deliver", kill_point, "server: before the model is sent")
    return coordinator, store


def die_after(
    part: object,
    method: str,
    kill_point: Callable[[str], None],
    place: str,
    applies: Callable[..., bool] = lambda *args: True,
) -> None:
    """Reach `place` after each call of a part's method whose arguments apply."""
    original = getattr(part, method)

    def wrapper(*args: Any) -> Any:
        result = original(*args)
        if applies(*args):
            kill_point(place)
        return result

    setattr(part, method, wrapper)


def die_after_commit(
    store: Store, part: object, method: str, kill_point: Callable[[str], None], place: str
) -> None:
    """Reach `place` once what a part's method has stored is on disk."""
    original = getattr(part, method)

    def wrapper(*args: Any) -> Any:
        result = original(*args)
        store.after_commit(lambda: kill_point(place))
        return result

    setattr(part, method, wrapper)


def die_before(part: object, method: str, kill_point: Callable[[str], None], place: str) -> None:
    """Reach `place` before each call of a part's method."""
    original = getattr(part, method)

    def wrapper(*args: Any) -> Any:
        kill_point(place)
        return original(*args)

    setattr(part, method, wrapper)
