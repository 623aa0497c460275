"""Activity from a watch: which of four activities six sensors show (BasicMotions, from aeon).

Each recording is 100 readings of accelerometer and gyroscope, three axes each. Eight people's
worth of 40 recordings are shared between five clients; the 40 test recordings are the server's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from examples.packages import package_file
from featherfed.tasks.task import Input, Target, TargetKind, Task

NAMES = ("Standing", "Running", "Walking", "Badminton")
TASK = Task(
    (Input("sensors", "float32", (100, 6), standardize=True),),
    Target(TargetKind.CLASS, (), NAMES),
    metrics=("accuracy", "f1"),
)
TRAINING = {"rounds": 20, "epochs": 5, "batch_size": 8, "learning_rate": 0.02}
CLIENTS = 5
Data = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def build() -> Any:
    """Return the model: two convolutions over time."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((100, 6), name="sensors"),
            layers.Conv1D(32, 7, activation="relu", name="conv1"),
            layers.MaxPooling1D(2, name="pool1"),
            layers.Conv1D(64, 5, activation="relu", name="conv2"),
            layers.GlobalAveragePooling1D(name="mean"),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(4, activation="softmax", name="activity"),
        ]
    )


def clients() -> dict[str, Data]:
    """Return the training recordings by client, shared out like cards."""
    x, y = _read("BasicMotions_TRAIN.ts")
    order = np.random.default_rng(0).permutation(len(x))
    return {f"watch-{k}": (x[order[k::CLIENTS]], y[order[k::CLIENTS]]) for k in range(CLIENTS)}


def test() -> Data:
    """Return the test recordings."""
    return _read("BasicMotions_TEST.ts")


def _read(name: str) -> Data:
    """Read the .ts format: dimensions separated by colons, readings by commas, the class last."""
    path = package_file("aeon", f"datasets/data/BasicMotions/{name}")
    lines = path.read_text("utf-8").split("@data", 1)[1].split("\n")
    parts = [line.strip().split(":") for line in lines if line.strip()]
    x = np.array([[list(map(float, d.split(","))) for d in part[:-1]] for part in parts])
    y = np.array([NAMES.index(part[-1]) for part in parts])
    return x.transpose(0, 2, 1).astype(np.float32), y


def main() -> None:
    """Train the federation in this process, and print how it went."""
    import featherfed

    history = featherfed.simulate(build(), TASK, clients=clients(), test=test(), **TRAINING)
    print(history)


if __name__ == "__main__":
    main()
