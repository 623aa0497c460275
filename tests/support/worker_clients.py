"""Clients without TensorFlow for worker processes: some are slow, and one may fail or die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from support.clients import Pull

from featherfed.proto import federation_pb2 as pb

FAILING = "c1"
Act = Callable[[pb.Train], None]


def nothing(task: pb.Train) -> None:
    pass


def die(task: pb.Train) -> None:
    if task.round == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def fail(task: pb.Train) -> None:
    if task.round == 2:
        raise LookupError("no such sensor")


def leave(task: pb.Train) -> None:
    os._exit(3)


def act(act: Act, number: int, task: pb.Train) -> None:
    """Take longer in some rounds, so that another client is first; then `act`."""
    time.sleep(0.02 * ((number + task.round) % 3))
    act(task)


@dataclass(frozen=True)
class MakePull:
    """Makes trainers in any process; `act` is what the failing client does in each round."""

    act: Act = nothing

    def __call__(self, name: str, plan: Any, manifest: Any, step: Any) -> Pull:
        own = self.act if name == FAILING else nothing
        number = int(name[1:])
        return Pull(number / 3, partial(act, own, number))
