"""Federated learning for small devices on thin links; docs/python.md shows how it is used.

What this module offers is imported when it is first used: `import featherfed` alone loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherfed.api.client import Client
    from featherfed.api.control import Outcome
    from featherfed.api.history import History, Round
    from featherfed.api.run import Run
    from featherfed.api.simulation import Callback, StopTraining, simulate
    from featherfed.datasets.dataset import Dataset
    from featherfed.edge_client.state import HeldModel
    from featherfed.edge_client.trainer import KerasLoop, Trainer, TrainingResult
    from featherfed.sweep.client_processes import WorkerDied
    from featherfed.tasks.task import Input, Target, TargetKind, Task, Window

    __version__: str

__all__ = [
    "Callback",
    "Client",
    "Dataset",
    "HeldModel",
    "History",
    "Input",
    "KerasLoop",
    "Outcome",
    "Round",
    "Run",
    "StopTraining",
    "Target",
    "TargetKind",
    "Task",
    "Trainer",
    "TrainingResult",
    "Window",
    "WorkerDied",
    "simulate",
]

_MODULES = {
    "Callback": "api.simulation",
    "Client": "api.client",
    "Dataset": "datasets.dataset",
    "HeldModel": "edge_client.state",
    "History": "api.history",
    "Input": "tasks.task",
    "KerasLoop": "edge_client.trainer",
    "Outcome": "api.control",
    "Round": "api.history",
    "Run": "api.run",
    "StopTraining": "api.simulation",
    "Target": "tasks.task",
    "TargetKind": "tasks.task",
    "Task": "tasks.task",
    "Trainer": "edge_client.trainer",
    "TrainingResult": "edge_client.trainer",
    "Window": "tasks.task",
    "WorkerDied": "sweep.client_processes",
    "simulate": "api.simulation",
}
"""Where each name comes from."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("featherfed")
    if name not in _MODULES:
        raise AttributeError(f"module 'featherfed' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"featherfed.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        from featherfed.api.extras import explained

        raise explained(error, name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
