"""What `featherfed sweep` costs beside plain training of the same steps: part of `make bench`.

The plain training is FedAvg as a notebook has it: one compiled model, `fit` for each client from
the global weights, numpy's mean, `evaluate`. All have the same data, model, batches, rounds and
epochs, and one thread, as a worker of a sweep has. Each run is a process of its own; all systems
run several times, in turns. Measured are the data's loading, the model's building and tracing,
training, codecs and evaluation; imports are not.

Writes benchmarks/results/sweep_overhead.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from featherfed.api.machine import machine
from featherfed.cli import sweep_worker
from featherfed.cli.sweep_case import run_case
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.sweep import results
from featherfed.sweep.grid import Case, Sweep

RESULT = Path(__file__).parent / "results" / "sweep_overhead.json"
STEPS_AT_ONCE = {"plain": 1, "plain25": 25}
"""Plain training, by how many steps Keras makes before it returns to Python."""
CODECS = ("float32", "balanced")
DATASET, CLIENTS, BATCH, LEARNING_RATE = "fashion-mnist", 5, 32, 0.01
ROUNDS, EPOCHS, REPEATS = 2, 1, 3


def cases(dataset: str, rounds: int, epochs: int) -> dict[str, Case]:
    """Return the case of each system; plain training takes no more than its settings from it."""
    training = {"epochs": epochs, "batch_size": BATCH, "learning_rate": LEARNING_RATE}
    sweep = Sweep.model_validate({
        "grid": {"codec": CODECS, "dataset": [dataset], "clients": [CLIENTS]},
        "run": {"rounds": rounds, "training": training},
    })  # fmt: skip
    by_codec = {case.label: case for case in sweep.cases()}
    return {**dict.fromkeys(STEPS_AT_ONCE, by_codec["float32"]), **by_codec}


def train_plainly(case: Case, steps_at_once: int) -> float:
    """Train without featherfed's sessions and codecs; return the accuracy."""
    import tf_keras

    from featherfed.models.zoo import build

    train, test = load_train_test(case.dataset)
    pixels, test_pixels = (part.images.astype(np.float32) / 255 for part in (train, test))
    shards = partition(train.labels, case.clients, case.partition, case.seed)
    data = [(pixels[chosen], train.labels[chosen]) for chosen in shards]
    model = build(case.model, train.input_shape, train.num_classes)
    model.compile(
        tf_keras.optimizers.SGD(LEARNING_RATE),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_at_once,
    )
    weights, accuracy = model.get_weights(), 0.0
    epochs = case.settings.training.epochs
    for _ in range(case.settings.rounds):
        trained = []
        for images, labels in data:
            model.set_weights(weights)
            model.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=0)
            trained.append(model.get_weights())
        weights = [np.mean(tensors, axis=0) for tensors in zip(*trained, strict=True)]
        model.set_weights(weights)
        _, accuracy = model.evaluate(test_pixels, test.labels, verbose=0)
    return float(accuracy)


def measure(system: str, case: Case) -> dict[str, float]:
    """Run a system in this process; return its seconds, processor seconds and accuracy."""
    import tf_keras  # noqa: F401 - its import is not measured

    with tempfile.TemporaryDirectory() as scratch:
        seconds, used = time.perf_counter(), time.process_time()
        if system in STEPS_AT_ONCE:
            accuracy = train_plainly(case, STEPS_AT_ONCE[system])
        else:
            metrics = run_case(case)
            results.save(Path(scratch), case, metrics)
            accuracy = metrics["final"]["scores"]["accuracy"]
        seconds, used = time.perf_counter() - seconds, time.process_time() - used
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        "accuracy": round(accuracy, 4),
    }


def main() -> None:
    """Measure all systems in turns, and write the result."""
    load = round(os.getloadavg()[0], 1)
    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(REPEATS):
        for system, case in cases(DATASET, ROUNDS, EPOCHS).items():
            _, sent = context.Pipe(duplex=False)
            with ProcessPoolExecutor(1, context, sweep_worker.start, (sent,)) as pool:
                found = pool.submit(measure, system, case).result()
            runs.setdefault(system, []).append(found)
            print(system, found, file=sys.stderr, flush=True)
    facts = {
        "machine": machine(), "load_before": load, "dataset": DATASET, "clients": CLIENTS,
        "rounds": ROUNDS, "epochs": EPOCHS, "batch": BATCH,
    }  # fmt: skip
    text = json.dumps({**facts, "systems": runs}, indent=1)
    RESULT.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
