"""A client's examples: those it trains on, those it holds out, and how they are standardised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from featherfed.datasets.dataset import Dataset
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Task, Values


@dataclass(frozen=True)
class Examples:
    """Examples that fit a task (see Dataset.fit), as stored; `scaling` says what they become."""

    task: Task
    training: Dataset
    held_out: Dataset | None = None
    given_scaling: Scaling | None = None

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
        targets = None if data.targets is None else scaling.prepare_target(data.targets[chosen])
        return scaling.prepare([values[chosen] for values in data.inputs]), targets

    @cached_property
    def prepared(self) -> tuple[list[Values], Values | None]:
        """The prepared inputs and targets of all training examples."""
        data, scaling = self.training, self.scaling
        targets = None if data.targets is None else scaling.prepare_target(data.targets)
        return scaling.prepare(data.inputs), targets
