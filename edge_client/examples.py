"""A client's examples: those it trains on, those it holds out, and how they are standardised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from featherfed.datasets.dataset import Dataset
from featherfed.datasets.order import held_out_by_content, held_out_examples
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.arrays import in_parts, read
from featherfed.tasks.message import statistics_message
from featherfed.tasks.records import fields
from featherfed.tasks.scaling import Scaling, Statistics
from featherfed.tasks.scoring import ROWS, Predict, Scoring, Sums, evaluate
from featherfed.tasks.task import TargetKind, Task, Values


@dataclass(frozen=True)
class Examples:
    """Examples that fit a task (see Dataset.fit), as stored; `scaling` says what they become."""

    task: Task
    training: Dataset
    held_out: Dataset | None = None
    given_scaling: Scaling | None = None

    @classmethod
    def of(
        cls,
        task: Task,
        data: Dataset,
        share: float,
        client: str,
        evaluation: Dataset | None = None,
        growing: bool = False,
    ) -> Examples:
        """Return a client's examples, of which it holds out a `share` from 0 to below 1.

        The same client holds out the same ones each time; if they are `growing`, none that it has
        trained on. `evaluation`: examples that take the place of a share. Raises DatasetError for
        data that do not fit the task, or too few to hold any out.
        """
        data = data.fit(task)
        if not share:
            return cls(task, data)
        if evaluation is not None:
            return cls(task, data, evaluation.fit(task))
        if growing and not data.ordered:
            kept, held_out = held_out_by_content(data.inputs, share, client)
        else:
            kept, held_out = held_out_examples(len(data), share, client, data.ordered)
        return cls(task, data.take(kept), data.take(held_out))

    def summary(self) -> pb.DataSummary:
        """Return what a client tells of its data when it joins."""
        task, data = self.task, self.training
        several = bool(task.target.parts)
        classes = data.targets if task.target.kind is TargetKind.CLASS else None
        return pb.DataSummary(
            num_examples=len(data),
            num_held_out=0 if self.held_out is None else len(self.held_out),
            class_names=data.class_names if data.has_class_names else (),
            num_classes=0 if classes is None else _num_classes(classes),
            inputs=[_summary(values) for values in data.inputs],
            target=None if data.targets is None or several else _summary(data.targets),
            targets=_summaries(task, data.targets) if several and data.targets is not None else (),
            statistics=statistics_message(Statistics.of(task, data.inputs, data.targets))
            if task.standardizes
            else None,
        )

    @property
    def scaling(self) -> Scaling:
        """What standardises the examples; nothing before the server has told it."""
        return self.given_scaling or Scaling.none(self.task)

    def scaled(self, scaling: Scaling) -> Examples:
        """Return the same examples, standardised by `scaling`."""
        return replace(self, given_scaling=scaling)

    def batch(self, chosen: Any) -> tuple[list[Values], Values | None]:
        """Return the prepared inputs and targets of the chosen training examples, int [n]."""
        data, scaling = self.training, self.scaling
        wanted = None if data.targets is None else read(data.targets, chosen)
        targets = None if wanted is None else scaling.prepare_target(wanted)
        return scaling.prepare([read(values, chosen) for values in data.inputs]), targets

    def held_out_sums(self, predict: Predict, batch: int = ROWS) -> Sums | None:
        """Return the sums of a model's answers to the held-out examples, `batch` of them at once.

        None if there are none.
        """
        if self.held_out is None:
            return None
        return evaluate(
            Scoring(self.task, self.scaling),
            predict,
            self.held_out.inputs,
            self.held_out.targets,
            prepare=self.scaling.prepare,
            batch=batch,
        )

    @cached_property
    def prepared(self) -> tuple[list[Values], Values | None]:
        """The prepared inputs and targets of all training examples."""
        data, scaling = self.training, self.scaling
        targets = None if data.targets is None else scaling.prepare_target(data.targets)
        return scaling.prepare(data.inputs), targets


def _summaries(task: Task, targets: Values) -> list[pb.TensorSummary]:
    """Return what is told of each of several targets."""
    made = []
    for part, values in zip(task.target.parts, fields(targets, task.target.names), strict=True):
        summary = _summary(values)
        if part.kind is TargetKind.CLASS:
            summary.num_classes = _num_classes(values)
        made.append(summary)
    return made


def _num_classes(classes: Values) -> int:
    return int(max(map(np.max, in_parts(classes)))) + 1


def _summary(values: Values) -> pb.TensorSummary:
    return pb.TensorSummary(dtype=values.dtype.name, shape=values.shape[1:])
