"""Transfer learning: the head of a network that the user brings, whose other layers are frozen.

A small MobileNet is trained on five classes of Fashion-MNIST and saved with a new head as
`backbone.keras`, by Keras 3, as a user might bring it. Five clients then learn the other five
classes with 400 pictures each; only the head's 2,565 values travel after the first model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featherfed.datasets.dataset import Dataset
from featherfed.datasets.sources import FASHION_CLASSES, load_train_test
from featherfed.tasks.task import Task, image_task

FIRST, SECOND = FASHION_CLASSES[:5], FASHION_CLASSES[5:]
TASK: Task = image_task((28, 28, 1), SECOND)
TRAINING = {"rounds": 10, "epochs": 2, "batch_size": 32, "learning_rate": 0.05}
CLIENTS, EXAMPLES, TESTS = 5, 400, 2500
BACKBONE_EXAMPLES = 10_000
FILE = Path("runs/transfer/backbone.keras")
Data = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def build() -> str:
    """Return the path of the model's file, which is made once."""
    if not FILE.is_file():
        FILE.parent.mkdir(parents=True, exist_ok=True)
        _train_backbone().save(FILE)
    return str(FILE)


def clients() -> dict[str, Data]:
    """Return each client's pictures of the second five classes."""
    train, _ = load_train_test("fashion-mnist")
    images, labels = _of_second(train)
    parts = [slice(k * EXAMPLES, (k + 1) * EXAMPLES) for k in range(CLIENTS)]
    return {f"shop-{k}": (images[part], labels[part]) for k, part in enumerate(parts)}


def test() -> Data:
    """Return test pictures of the second five classes."""
    _, tests = load_train_test("fashion-mnist")
    images, labels = _of_second(tests)
    return images[:TESTS], labels[:TESTS]


def _of_second(data: Dataset) -> Data:
    chosen = data.labels >= len(FIRST)
    return data.images[chosen], data.labels[chosen] - len(FIRST)


def _train_backbone() -> Any:
    """Return a Keras 3 model: frozen layers that know the first five classes, and a new head."""
    import keras

    train, _ = load_train_test("fashion-mnist")
    chosen = np.flatnonzero(train.labels < len(FIRST))[:BACKBONE_EXAMPLES]
    keras.utils.set_random_seed(0)
    backbone = _backbone(keras)
    own = keras.Sequential([backbone, keras.layers.Dense(len(FIRST), activation="softmax")])
    own.compile("adam", "sparse_categorical_crossentropy")
    own.fit(train.images[chosen] / 255.0, train.labels[chosen], epochs=3, verbose=0)
    backbone.trainable = False
    head = keras.layers.Dense(len(SECOND), activation="softmax", name="classes")
    return keras.Sequential([keras.Input((28, 28, 1), name="image"), backbone, head])


def _backbone(keras: Any) -> Any:
    layers = keras.layers
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(32, 3, strides=2, padding="same")]
    for filters, strides in ((64, 1), (128, 2), (256, 2), (512, 1)):
        stack += [
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(filters, 1, use_bias=False),
        ]
    stack += [layers.BatchNormalization(), layers.ReLU(), layers.GlobalAveragePooling2D()]
    return keras.Sequential(stack, name="backbone")


def main() -> None:
    """Train the federation in this process, and print how it went."""
    import featherfed

    history = featherfed.simulate(build(), TASK, clients=clients(), test=test(), **TRAINING)
    print(history)


if __name__ == "__main__":
    main()
