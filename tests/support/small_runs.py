"""Whole runs of small models by the real commands, as processes of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from support.kills import free_port
from support.processes import Processes, wait_until

SHAPE = (6, 3)
"""Of one example of `windows`."""


def windows(count: int, seed: int, classes: int = 2) -> dict[str, Any]:
    """Return the arrays of an .npz of windows [count, 6, 3] whose class is easily seen."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = rng.normal(0, 0.5, (count, *SHAPE)) + labels[:, None, None]
    return {"motion": x.astype(np.float32), "y": labels.astype(np.int64)}


def task(classes: tuple[str, ...] = ("still", "walking")) -> dict[str, Any]:
    """Return the section [task] that `windows` fit."""
    return {
        "inputs": [{"name": "motion", "dtype": "float32", "shape": list(SHAPE)}],
        "target": {"kind": "class", "class_names": list(classes)},
    }


class SmallRun:
    """A run in a folder: its run file, its server and its clients."""

    def __init__(self, folder: Path, model: Any, **sections: Any) -> None:
        """`model`: a tf_keras model without weights of its own."""
        self.folder = folder
        self.output = folder / "out"
        self.processes = Processes(folder)
        (folder / "model.json").write_text(model.to_json(), "utf-8")
        self.port = free_port()
        self.write(**sections)

    def write(self, **sections: Any) -> None:
        """Write the run file; sections replace or extend the usual ones."""
        usual: dict[str, Any] = {
            "name": "small",
            "output": "out",
            "rounds": 2,
            "server": {"port": self.port, "linger": 20.0},
            "model": {"name": "model.json"},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.05},
            "compression": {"uplink": "float32", "downlink": "float32"},
            "clients": {"minimum": 1, "quorum": 1.0, "patience": 5.0},
            "task": task(),
        }
        for name, values in sections.items():
            both = isinstance(values, Mapping) and isinstance(usual.get(name), Mapping)
            usual[name] = {**usual[name], **values} if both and name != "task" else values
        (self.folder / "run.toml").write_text(tomli_w.dumps(usual), "utf-8")

    def serve(self, *more: str, name: str = "server") -> None:
        """Start the server, and wait until it listens."""
        (self.output / "server.address").unlink(missing_ok=True)
        server = self.processes.start(name, "serve", "run.toml", *more)
        wait_until(
            lambda: (self.output / "server.address").is_file() or server.poll() is not None, 120
        )

    def join(self, client: str, data: Mapping[str, Any], *more: str) -> None:
        """Start a client."""
        np.savez(self.folder / f"{client}.npz", **data)
        self.processes.join(client, f"127.0.0.1:{self.port}", f"{client}.npz", *more)

    def finish(self, *clients: str, server: str = "server", status: int = 0) -> Any:
        """Wait for the end of the server and of some clients; return metrics.json."""
        for name in (*clients, server):
            code = self.processes.wait(name)
            assert code == status, f"{name}: {code}\n{self.processes.log(name)}"
        return self.metrics()

    def metrics(self) -> Any:
        """Return metrics.json as it is now."""
        return json.loads((self.output / "metrics.json").read_text("utf-8"))

    def log(self, name: str = "server") -> str:
        """Return what a process has written."""
        return self.processes.log(name)
