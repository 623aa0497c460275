"""A virtual sensor: the trunk's acceleration from ankle and leg (Daphnet S06R02, from aeon).

Half a second of six accelerometer axes gives the three axes of a third sensor at its end. Five
clients hold a part each of the recording; the last tenth of each part is for testing.
"""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.packages import package_file
from featherfed.datasets.windows import cut, ends_of_series
from featherfed.tasks.task import Input, Target, TargetKind, Task, Window

PLACES = ("horiz_fwd", "vert", "horiz_lateral")
INPUTS = tuple(f"{part}_{place}" for part in ("ankle", "leg") for place in PLACES)
TARGETS = tuple(f"trunk_{place}" for place in PLACES)
WINDOW = Window(length=32, stride=4)
TASK = Task(
    (Input("legs", "float32", (32, 6), standardize=True, columns=INPUTS),),
    Target(TargetKind.VALUES, (3,), standardize=True, columns=TARGETS),
    metrics=("mae", "r2"),
    window=WINDOW,
)
TRAINING = {"rounds": 15, "epochs": 3, "batch_size": 16, "learning_rate": 0.05}
CLIENTS = 5
TEST_SHARE = 0.1
Data = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def build() -> Any:
    """Return the model: two convolutions over time."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((32, 6), name="legs"),
            layers.Conv1D(32, 5, activation="relu", name="conv1"),
            layers.MaxPooling1D(2, name="pool1"),
            layers.Conv1D(32, 5, activation="relu", name="conv2"),
            layers.Flatten(name="flat"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(3, name="trunk"),
        ]
    )


def clients() -> dict[str, Data]:
    """Return each client's windows of its own part of the recording."""
    return {f"part-{k}": _windows(part[: _kept(part)]) for k, part in enumerate(_parts())}


def test() -> Data:
    """Return the windows at the end of each part."""
    found = [_windows(part[_kept(part) :]) for part in _parts()]
    return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


def _parts() -> list[npt.NDArray[np.float32]]:
    path = package_file("aeon", "datasets/data/Daphnet_S06R02E0/S06R02E0.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[float(row[name]) for name in (*INPUTS, *TARGETS)] for row in csv.DictReader(file)]
    return np.array_split(np.array(rows, np.float32), CLIENTS)


def _kept(part: npt.NDArray[np.float32]) -> int:
    return round(len(part) * (1 - TEST_SHARE))


def _windows(rows: npt.NDArray[np.float32]) -> Data:
    legs, trunk = rows[:, : len(INPUTS)], rows[:, len(INPUTS) :]
    (x,), y = cut([legs], trunk, ends_of_series(len(rows), None), WINDOW)
    assert y is not None, "the trunk is the target"
    return x, y


def main() -> None:
    """Train the federation in this process, and print how it went."""
    import featherfed

    history = featherfed.simulate(build(), TASK, clients=clients(), test=test(), **TRAINING)
    print(history)


if __name__ == "__main__":
    main()
