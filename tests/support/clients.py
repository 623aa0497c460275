"""Parts of clients: a trainer without data whose update is known, profiles, join requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from support.models import summary

from featherfed.compression.arrays import Array
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.trainer import TrainingResult
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import Sums


class WithoutData:
    """The part of a trainer that needs no data: nothing is standardised or evaluated."""

    def set_scaling(self, scaling: Scaling) -> None:
        """Do nothing."""

    def evaluate(self, weights: Sequence[Array]) -> Sums | None:
        """Return None: no examples are held out."""
        return None


class Pull(WithoutData):
    """A trainer that moves all weights halfway towards `value`."""

    def __init__(self, value: float, on_train: Callable[[pb.Train], None] | None = None) -> None:
        self.value = value
        self.on_train = on_train

    def train(self, weights: Sequence[Array], task: pb.Train) -> TrainingResult:
        if self.on_train:
            self.on_train(task)
        moved = [w + np.float32(0.5) * (np.float32(self.value) - w) for w in weights]
        if task.sparsity:
            moved[0] = np.where(weights[0] == 0, np.float32(0), moved[0])
        return TrainingResult(moved, 0.5)


def profile(name: str, num_examples: int = 100) -> Profile:
    data = summary(num_examples=num_examples)
    return Profile(name, data, "numpy", ("none", "prune"), "0")


def join_request(name: str, num_examples: int = 100) -> pb.JoinRequest:
    session = Session(profile(name, num_examples), None, None, None)  # type: ignore[arg-type]
    return session._join_request()
