"""Tables: a regression (diabetes progression) and a classification (breast cancer), scikit-learn's.

Five clients hold equal shares of the rows; a fifth of the rows is for testing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.tasks.task import Input, Target, TargetKind, Task

DIABETES = Task(
    (Input("x", "float32", (10,), standardize=True),),
    Target(TargetKind.VALUES, standardize=True),
    metrics=("mae", "r2"),
)
CANCER = Task(
    (Input("x", "float32", (30,), standardize=True),),
    Target(TargetKind.CLASS, (), ("malignant", "benign")),
    metrics=("accuracy", "auc"),
)
TRAINING = {"rounds": 20, "epochs": 3, "batch_size": 16, "learning_rate": 0.05}
CLIENTS = 5
Data = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def build_diabetes() -> Any:
    """Return the model of the regression."""
    return _dense(10, 1, None)


def build_cancer() -> Any:
    """Return the model of the classification."""
    return _dense(30, 2, "softmax")


def _dense(width: int, outputs: int, activation: str | None) -> Any:
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((width,), name="x"),
            layers.Dense(64, activation="relu", name="hidden1"),
            layers.Dense(32, activation="relu", name="hidden2"),
            layers.Dense(outputs, activation=activation, name="answer"),
        ]
    )


def diabetes_clients() -> dict[str, Data]:
    """Return the regression's training rows by client."""
    return _shares(*_diabetes())


def diabetes_test() -> Data:
    """Return the regression's test rows."""
    return _test(*_diabetes())


def cancer_clients() -> dict[str, Data]:
    """Return the classification's training rows by client."""
    return _shares(*_cancer())


def cancer_test() -> Data:
    """Return the classification's test rows."""
    return _test(*_cancer())


def _diabetes() -> Data:
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    return data.data.astype(np.float32), data.target.astype(np.float32)


def _cancer() -> Data:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return data.data.astype(np.float32), data.target


def _order(count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).permutation(count)


def _shares(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> dict[str, Data]:
    rows = _order(len(x))[len(x) // 5 :]
    return {f"clinic-{k}": (x[rows[k::CLIENTS]], y[rows[k::CLIENTS]]) for k in range(CLIENTS)}


def _test(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Data:
    rows = _order(len(x))[: len(x) // 5]
    return x[rows], y[rows]


def main() -> None:
    """Train both federations in this process, and print how they went."""
    import featherfed

    history = featherfed.simulate(
        build_diabetes(), DIABETES, clients=diabetes_clients(), test=diabetes_test(), **TRAINING
    )
    print(history)
    history = featherfed.simulate(
        build_cancer(), CANCER, clients=cancer_clients(), test=cancer_test(), **TRAINING
    )
    print(history)


if __name__ == "__main__":
    main()
