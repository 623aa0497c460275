"""Standardising the clients' data alike: their statistics, and the scaling that follows from them.

Nobody sees the data: clients send sums by feature, which the server adds when the first round
opens. From then on the scaling stays the same for all clients and versions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused, ServerError
from featherfed.server.observability import events
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import (
    read_scaling,
    read_statistics,
    scaling_message,
    statistics_message,
)
from featherfed.tasks.scaling import FeatureSums, Scaling, Statistics, merge
from featherfed.tasks.task import Task

MAX_MAGNITUDE = 1e18
"""Largest mean or deviation of a feature: its square, too, is far from the largest float32."""


class Standardization:
    """Keeps clients' statistics until the first round opens, and the scaling afterwards."""

    def __init__(self, run: LiveRun, task: Task) -> None:
        """Take up what the run's store holds; raise ServerError if it is of another task."""
        self._run = run
        self._task = task
        self._message: pb.Scaling | None = None
        self._scaling: Scaling | None = None
        stored = run.store.scaling.scaling()
        if stored is not None:
            try:
                self._remember(stored, read_scaling(stored, task))
            except TaskError as error:
                raise ServerError(
                    f"{run.store.place} holds the scaling of another task ({error}); "
                    f"{run.store.elsewhere}, or restore [task]"
                ) from error
        run.on_opening.append(self._fix)

    @property
    def scaling(self) -> Scaling | None:
        """The scaling; None before the first round, or if the task needs none."""
        return self._scaling

    @property
    def message(self) -> pb.Scaling | None:
        """The scaling as clients get it."""
        return self._message

    def add(self, client: str, data: pb.DataSummary) -> None:
        """Store the statistics of a client that joins; raise Refused if they cannot be.

        The caller holds the run's lock.
        """
        if not self._task.standardizes:
            return
        statistics = check_statistics(data, self._task)
        if self._run.store.scaling.scaling() is None:
            self._run.store.scaling.save_statistics(client, statistics_message(statistics))

    def _fix(self, present: frozenset[str]) -> None:
        """Fix the scaling as the first round opens, by the statistics of the clients present."""
        store = self._run.store.scaling
        if not self._task.standardizes or store.scaling() is not None:
            return
        told = store.statistics()
        chosen = [told[name] for name in told if name in present] or list(told.values())
        if not chosen:
            raise ServerError(
                f"{self._run.store.place}: clients have joined without statistics of their data, "
                f"which the task needs; {self._run.store.elsewhere}"
            )
        scaling = merge(read_statistics(message, self._task) for message in chosen)
        message = scaling_message(scaling)
        store.fix(message)
        self._run.store.after_commit(lambda: self._remember(message, scaling))
        name, count = self._run.plan.run, len(chosen)
        self._run.store.after_commit(lambda: events.scaling_fixed(name, count))

    def _remember(self, message: pb.Scaling, scaling: Scaling) -> None:
        self._message, self._scaling = message, scaling


def check_statistics(data: pb.DataSummary, task: Task) -> Statistics:
    """Return a client's statistics; raise Refused unless they can be those of its examples."""
    if not data.HasField("statistics"):
        raise Refused(
            pb.DATA_MISMATCH,
            "the task standardises its data, and this client sends no statistics of them; update "
            "featherfed on the client",
        )
    try:
        statistics = read_statistics(data.statistics, task)
        with np.errstate(over="ignore", invalid="ignore"):
            alone = merge([statistics])
        alone.check(task)
    except TaskError as error:
        raise Refused(pb.DATA_MISMATCH, f"statistics of the data: {error}") from error
    for given, sums in zip(task.inputs, statistics.inputs, strict=True):
        _check_count(data, given.shape, sums)
    of_targets = statistics.targets or (statistics.target,)
    for target, sums in zip(task.target.each, of_targets, strict=True):
        _check_count(data, target.shape, sums)
    for scale in (*alone.inputs, *alone.of_targets):
        if scale is not None and max(abs(scale.mean).max(), scale.deviation.max()) > MAX_MAGNITUDE:
            raise Refused(
                pb.DATA_MISMATCH,
                f"statistics of values above {MAX_MAGNITUDE:.0e}; convert the data to other units",
            )
    return statistics


def _check_count(data: pb.DataSummary, shape: Sequence[int], sums: FeatureSums | None) -> None:
    """Raise Refused if a tensor of this shape cannot have so many values of a feature."""
    examples = data.num_examples + data.num_held_out
    most = examples * math.prod(shape[:-1])
    if sums is not None and sums.count > most:
        raise Refused(
            pb.DATA_MISMATCH,
            f"statistics of {sums.count:.0f} values of a feature; {examples} examples have {most}",
        )
