"""Anomalies: an autoencoder of ordinary movement (BasicMotions, from aeon).

The model learns to give back a quarter of a recording of a watch's six sensors, of people who stand
or walk; where it fails, something else goes on: running and badminton, which nobody trains on. Five
clients hold ordinary windows of the training recordings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from examples.watch import example as watch
from featherfed.tasks.task import Input, Target, TargetKind, Task

LENGTH, STRIDE, AXES = 25, 5, 6
ORDINARY = (watch.NAMES.index("Standing"), watch.NAMES.index("Walking"))
TASK = Task(
    (Input("sensors", "float32", (LENGTH, AXES), standardize=True),), Target(TargetKind.INPUT)
)
TRAINING = {"rounds": 20, "epochs": 5, "batch_size": 8, "learning_rate": 0.1}
Floats = npt.NDArray[np.float32]


def build() -> Any:
    """Return the model: down to 16 numbers and back."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((LENGTH, AXES), name="sensors"),
            layers.Flatten(name="flat"),
            layers.Dense(96, activation="relu", name="narrow"),
            layers.Dense(16, activation="relu", name="code"),
            layers.Dense(96, activation="relu", name="wide"),
            layers.Dense(LENGTH * AXES, name="values"),
            layers.Reshape((LENGTH, AXES), name="again"),
        ]
    )


def clients() -> dict[str, tuple[Floats, None]]:
    """Return each client's ordinary windows."""
    return {name: (_windows(*data, ordinary=True), None) for name, data in watch.clients().items()}


def test() -> tuple[Floats, None]:
    """Return the ordinary windows of the test recordings."""
    return _windows(*watch.test(), ordinary=True), None


def anomalies() -> Floats:
    """Return the other windows of the test recordings."""
    return _windows(*watch.test(), ordinary=False)


def _windows(recordings: npt.NDArray[Any], activity: npt.NDArray[Any], *, ordinary: bool) -> Floats:
    chosen = recordings[np.isin(activity, ORDINARY) == ordinary]
    starts = range(0, recordings.shape[1] - LENGTH + 1, STRIDE)
    parts = [chosen[:, start : start + LENGTH] for start in starts]
    return np.concatenate(parts).astype(np.float32)


def main() -> None:
    """Train the federation in this process, and print how it went and how far anomalies are off."""
    import featherfed

    ordinary, _ = test()
    history = featherfed.simulate(
        build(), TASK, clients={name: x for name, (x, _) in clients().items()}, test=ordinary,
        **TRAINING,
    )  # fmt: skip
    print(history)
    for what, windows in (("ordinary", ordinary), ("other", anomalies())):
        prepared = history.scaling.prepare([windows])[0]
        off = np.sqrt(np.square(history.predict(windows) - prepared).mean(axis=(1, 2)))
        print(f"{what} windows are off by {np.median(off):.2f} (median, in deviations)")


if __name__ == "__main__":
    main()
