"""Forecasting: the next six hours' temperature from the last day (Seattle, 2010, vega_datasets).

Five clients hold a fifth of the year each, one after the other, so each knows its own season. The
last tenth of each one's hours is for testing.
"""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.packages import package_file
from featherfed.datasets.windows import cut, ends_of_series
from featherfed.tasks.task import Input, Target, TargetKind, Task, Window

WINDOW = Window(length=24, stride=1, horizon=6)
TASK = Task(
    (Input("past", "float32", (24, 1), standardize=True, columns=("temp",)),),
    Target(TargetKind.VALUES, (6,), standardize=True, columns=("temp",)),
    window=WINDOW,
)
TRAINING = {"rounds": 10, "epochs": 2, "batch_size": 32, "learning_rate": 0.05}
CLIENTS = 5
TEST_SHARE = 0.1
Data = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def build() -> Any:
    """Return the model: a GRU over the day, then a layer for the six hours."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((24, 1), name="past"),
            layers.GRU(24, recurrent_initializer="glorot_uniform", name="day"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(6, name="hours"),
        ]
    )


def clients() -> dict[str, Data]:
    """Return each client's windows of its own fifth of the year."""
    return {f"season-{k}": _windows(part[: _kept(part)]) for k, part in enumerate(_parts())}


def test() -> Data:
    """Return the windows of the last hours of all clients."""
    found = [_windows(part[_kept(part) :]) for part in _parts()]
    return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


def _parts() -> list[npt.NDArray[np.float32]]:
    path = package_file("vega_datasets", "_data/seattle-temps.csv")
    with path.open(newline="", encoding="utf-8") as file:
        values = np.array([float(row["temp"]) for row in csv.DictReader(file)], np.float32)
    return np.array_split(values, CLIENTS)


def _kept(part: npt.NDArray[np.float32]) -> int:
    return round(len(part) * (1 - TEST_SHARE))


def _windows(hours: npt.NDArray[np.float32]) -> Data:
    (x,), y = cut([hours[:, None]], hours, ends_of_series(len(hours), None), WINDOW)
    assert y is not None, "the horizon gives targets"
    return x, y


def main() -> None:
    """Train the federation in this process, and print how it went."""
    import featherfed

    history = featherfed.simulate(build(), TASK, clients=clients(), test=test(), **TRAINING)
    print(history)


if __name__ == "__main__":
    main()
