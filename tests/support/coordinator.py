"""Runs without gRPC: tests call the coordinator themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.clients import join_request
from support.engines import open_store
from support.evaluator import DistanceEvaluator
from support.federation import settings
from support.models import MANIFEST, TASK
from support.updates import update

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.round import RoundContext, round_key
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import ServerError
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.settings.plan import make_plan

CODEC = {"uplink": "float32", "downlink": "float32"}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


class Run:
    """A run without gRPC; `restart` is a crash of the server and its next start."""

    def __init__(self, directory: Path, clock: Callable[[], float], **changes: object) -> None:
        self.settings = settings(directory, compression=CODEC, **changes)
        self.path = directory / "run.db"
        self.sessions: dict[str, int] = {}
        self.restart(clock)

    def restart(self, clock: Callable[[], float]) -> None:
        if self.sessions:
            self.store._database.close()  # what a dead process leaves: nothing is written any more
        self.store = open_store(self.path.parent)
        plan = make_plan(self.settings, TASK, "{}", MANIFEST)
        self.coordinator = Coordinator(
            self.settings, self.store, plan, MANIFEST, TASK, DistanceEvaluator(), clock, secret=1
        )

    def join(self, *names: str) -> None:
        for name in names:
            self.sessions[name] = self.coordinator.admission.join(join_request(name)).session

    def poll(self, *names: str) -> list[pb.NextTaskReply]:
        return [self.coordinator.tasks.next_task(name) for name in names]

    def submit(self, name: str, round_: int = 1) -> None:
        payload = update()
        header = pb.UpdateHeader(
            session=self.sessions[name],
            round=round_,
            version=round_ - 1,
            num_examples=1,
            size=len(payload),
        )
        assert self.coordinator.updates.submit(name, header, payload, len(payload)) == pb.ACCEPTED

    def tick(self) -> RunState:
        return self.coordinator.tick()


THREE = {"minimum": 3, "quorum": 0.6, "deadline": 100, "patience": 10}


def opened(run: Run) -> Run:
    """Return the run in its first round, with the clients a, b and c in the cohort."""
    run.join(*"abc")
    run.poll(*"abc")
    assert run.tick().phase is Phase.TRAINING
    return run


class DirectRun:
    """A run without gRPC, whose rounds are played with updates made by hand."""

    def __init__(self, folder: Path, **changes: object) -> None:
        folder.mkdir(exist_ok=True)
        self.settings = settings(folder, **changes)
        self.store = open_store(folder)
        try:
            self.coordinator = Coordinator(
                self.settings, self.store, make_plan(self.settings, TASK, "{}", MANIFEST), MANIFEST,
                TASK, DistanceEvaluator(), time.time, secret=1,
            )  # fmt: skip
        except ServerError:
            self.store.close()
            raise

    def submit(
        self, updates: Mapping[str, Sequence[Array]], num_examples: int | Mapping[str, int] = 100
    ) -> None:
        """Play a round up to its close; `num_examples` of all clients, or by client."""
        run = self.coordinator
        counts = (
            dict.fromkeys(updates, num_examples)
            if isinstance(num_examples, int)
            else (num_examples)
        )
        joins = {name: run.admission.join(join_request(name, counts[name])) for name in updates}
        for name in updates:
            run.tasks.next_task(name)
        run.tick()
        for name, tensors in updates.items():
            task = run.tasks.next_task(name).train
            assert task.round, "every client has a task"
            round_ = RoundContext(
                round_key(0, task.round), task.slots, [None] * len(MANIFEST), None
            )
            payload = encode_update(
                parse_codec(task.codec), MANIFEST, list(tensors), context=round_.for_slot(task.slot)
            ).payload
            header = pb.UpdateHeader(
                session=joins[name].session, round=task.round, version=task.version,
                num_examples=counts[name], size=len(payload), train_loss=0.25,
            )  # fmt: skip
            assert run.updates.submit(name, header, payload, len(payload)) == pb.ACCEPTED
        assert run.phase is Phase.AGGREGATING

    def step(self, updates: Mapping[str, Sequence[Array]]) -> list[Array]:
        """Play a round; return the change of the model."""
        before = self.coordinator.newest_weights()
        self.submit(updates)
        self.coordinator.aggregate()
        return [a - b for a, b in zip(self.coordinator.newest_weights(), before, strict=True)]

    def metrics(self) -> Any:
        facts = {"featherfed": "0", "num_test_examples": 1}
        return metrics.collect(self.store, self.settings, TASK, MANIFEST, facts)
