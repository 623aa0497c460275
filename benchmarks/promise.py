"""What the presets lose, and how many bytes they take, on models and data of many kinds.

Part of `make bench`; `python benchmarks/promise.py [PAIR]...` measures some pairs. Writes
benchmarks/results/promise.json, after each run; runs that it holds are not made again.

The examples are measured by own_tasks.py. No setting was chosen by looking at these results, but
for one: that averages travel as 16-bit floats, since the residual network's showed that 8 are too
few.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tf_keras
from own_tasks import ROOT, Example, federated, fitting, tf

from featherfed.datasets.dataset import DatasetError
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.models.zoo import build
from featherfed.tasks.task import image_task

log = logging.getLogger(__name__)

RESULT = ROOT / "benchmarks" / "results" / "promise.json"
SEEDS = (0, 1, 2)
CODECS = ("float32", "transparent", "balanced", "extreme")
CLIENTS = 5


def residual(shape: tuple[int, int, int], classes: int) -> Any:
    """Return a residual network with batch normalisation."""
    layers = tf_keras.layers
    image = layers.Input(shape)
    x = layers.ReLU()(_normalized(layers.Conv2D(16, 3, padding="same", use_bias=False)(image)))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(_normalized(y))
        y = _normalized(layers.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        if stride > 1:
            x = _normalized(layers.Conv2D(filters, 1, stride, use_bias=False)(x))
        x = layers.ReLU()(layers.add([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(image, layers.Dense(classes, activation="softmax")(x))


def _normalized(x: Any) -> Any:
    return tf_keras.layers.BatchNormalization(momentum=0.9)(x)


def transformer(shape: tuple[int, int, int], classes: int) -> Any:
    """Return two blocks of attention over a picture's rows."""
    layers = tf_keras.layers
    image = layers.Input(shape)
    x = layers.Dense(48)(layers.Reshape((shape[0], shape[1] * shape[2]))(image))
    for _ in range(2):
        attended = layers.MultiHeadAttention(4, 12)(x, x)
        x = layers.LayerNormalization()(layers.add([x, attended]))
        hidden = layers.Dense(48)(layers.Dense(96, activation="relu")(x))
        x = layers.LayerNormalization()(layers.add([x, hidden]))
    x = layers.GlobalAveragePooling1D()(x)
    return tf_keras.Model(image, layers.Dense(classes, activation="softmax")(x))


def pictures(
    dataset: str,
    model: str | Callable[[tuple[int, int, int], int], Any],
    each: int | None,
    training: Mapping[str, Any],
    scheme: str = "iid",
) -> Callable[[], Example]:
    """Return what makes the example of a model for pictures, `each` of them a client."""

    def make() -> Example:
        train, test = load_train_test(dataset)
        task = image_task(train.input_shape, train.class_names)
        (images,), labels = train.inputs, train.targets
        count = len(train) if each is None else CLIENTS * each
        parts = partition(labels[:count], CLIENTS, scheme, 0)
        made = (lambda *size: build(model, *size)) if isinstance(model, str) else model
        return Example(
            task,
            lambda: made(train.input_shape, len(train.class_names)),
            lambda: {f"client-{k}": (images[own], labels[own]) for k, own in enumerate(parts)},
            lambda: (test.inputs[0], test.targets),
            training,
        )

    return make


_SEVEN = {"rounds": 7, "epochs": 5, "batch_size": 32}
PAIRS: dict[str, Callable[[], Example]] = {
    "mlp": pictures("fashion-mnist", "mlp", 2000, {**_SEVEN, "learning_rate": 0.01}),
    "mobile": pictures("digits", "mobile", None, {**_SEVEN, "learning_rate": 0.1}),
    "gru": pictures("digits", "gru", None, {**_SEVEN, "learning_rate": 0.1}),
    "residual": pictures(
        "fashion-mnist", residual, 2000,
        {"rounds": 6, "epochs": 2, "batch_size": 32, "learning_rate": 0.05},
    ),
    "transformer": pictures(
        "fashion-mnist", transformer, 1000, {**_SEVEN, "epochs": 3, "learning_rate": 0.05}
    ),
    "cnn, Dirichlet 0.1": pictures(
        "fashion-mnist", "cnn", 2000, {**_SEVEN, "epochs": 2, "learning_rate": 0.02},
        "dirichlet:0.1",
    ),
    "cnn, Dirichlet 0.3": pictures(
        "fashion-mnist", "cnn", 2000, {**_SEVEN, "epochs": 2, "learning_rate": 0.02},
        "dirichlet:0.3",
    ),
}  # fmt: skip
"""Beside the example itself, which the sweep `presets` measures."""


def main(names: list[str]) -> None:
    """Measure the named pairs, or all."""
    known: dict[str, Any] = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else {}
    for name in names or PAIRS:
        try:
            example = PAIRS[name]()
            parts, test = fitting(example)
        except (SystemExit, DatasetError) as error:
            log.warning("%s is left out: %s", name, error)
            continue
        found = known.setdefault(name, {"metric": example.task.leading, "runs": {}})
        for seed in SEEDS:
            for codec in CODECS:
                runs = found["runs"].setdefault(codec, {})
                if str(seed) not in runs:
                    runs[str(seed)] = federated(example, parts, test, codec, seed, "keras")
                    RESULT.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
                scores = runs[str(seed)]["scores"][found["metric"]]
                print(f"{name} {codec} seed {seed}: {scores:.4f}", flush=True)


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main(sys.argv[1:])
