"""Every example federated, beside the same model trained on all data and by one client alone.

Part of `make bench`; `python benchmarks/own_tasks.py [EXAMPLE]...` measures some of them. All train
as many epochs in all, from the same start for a seed; scores are on the example's test data, means
over seeds. Writes benchmarks/results/own_tasks.json; an example whose data are not installed is
left out, with a warning.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the examples

from featherfed.models.importing import importing_tensorflow  # noqa: E402

with importing_tensorflow():
    import tensorflow as tf

from examples.anomaly import example as anomaly  # noqa: E402
from examples.forecast import example as forecast  # noqa: E402
from examples.gait import example as gait  # noqa: E402
from examples.tables import example as tables  # noqa: E402
from examples.text import example as text  # noqa: E402
from examples.transfer import example as transfer  # noqa: E402
from examples.watch import example as watch  # noqa: E402
from featherfed.api.build import KerasEvaluator  # noqa: E402
from featherfed.api.machine import machine  # noqa: E402
from featherfed.api.training_step import offered_step  # noqa: E402
from featherfed.compression.exchange.initial_weights import initial_weights  # noqa: E402
from featherfed.compression.exchange.manifest import Manifest  # noqa: E402
from featherfed.datasets.dataset import Dataset, DatasetError  # noqa: E402
from featherfed.edge_client.examples import Examples  # noqa: E402
from featherfed.edge_client.keras_trainer import KerasTrainer  # noqa: E402
from featherfed.edge_client.litert_trainer import LitertTrainer  # noqa: E402
from featherfed.edge_client.trainer import Trainer  # noqa: E402
from featherfed.models.model_files import load_model  # noqa: E402
from featherfed.models.optimized import FederatedModel  # noqa: E402
from featherfed.proto import federation_pb2 as pb  # noqa: E402
from featherfed.server.settings.settings import Settings  # noqa: E402
from featherfed.sweep.simulate import simulate  # noqa: E402
from featherfed.tasks.scaling import Scaling, Statistics, merge  # noqa: E402
from featherfed.tasks.task import Task  # noqa: E402

log = logging.getLogger(__name__)

RESULT = ROOT / "benchmarks" / "results" / "own_tasks.json"
SEEDS = (0, 1, 2)
CODECS = ("float32", "transparent", "balanced", "extreme")
ON_LITERT = "balanced"
"""The codec that LiteRT clients are measured with, too."""
Data = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Example:
    """A task, its model (a tf_keras model or a path), its data, and how it is trained."""

    task: Task
    build: Callable[[], Any]
    clients: Callable[[], Data]
    test: Callable[[], tuple[Any, Any]]
    training: Mapping[str, Any]


EXAMPLES = {
    "watch": Example(watch.TASK, watch.build, watch.clients, watch.test, watch.TRAINING),
    "gait": Example(gait.TASK, gait.build, gait.clients, gait.test, gait.TRAINING),
    "forecast": Example(
        forecast.TASK, forecast.build, forecast.clients, forecast.test, forecast.TRAINING
    ),
    "anomaly": Example(
        anomaly.TASK, anomaly.build, anomaly.clients, anomaly.test, anomaly.TRAINING
    ),
    "text": Example(text.TASK, text.build, text.clients, text.test, text.TRAINING),
    "diabetes": Example(
        tables.DIABETES, tables.build_diabetes, tables.diabetes_clients, tables.diabetes_test,
        tables.TRAINING,
    ),
    "cancer": Example(
        tables.CANCER, tables.build_cancer, tables.cancer_clients, tables.cancer_test,
        tables.TRAINING,
    ),
    "transfer": Example(
        transfer.TASK, transfer.build, transfer.clients, transfer.test, transfer.TRAINING
    ),
}  # fmt: skip


def new_model(example: Example) -> FederatedModel:
    """Return the example's model, with the first weights that its file gives."""
    loaded = (
        load_model(str(made), lambda: made) if isinstance(made := example.build(), str) else made
    )
    if not isinstance(made, str):
        return FederatedModel(made, task=example.task)
    model = FederatedModel(loaded.json, task=example.task)
    if loaded.weights is not None:
        model.start_from(loaded.weights)
    return model


def fitting(example: Example) -> tuple[dict[str, Dataset], Dataset]:
    """Return the data of the clients and the test data, as the task asks for them."""
    clients = {
        name: Dataset((x,), y).fit(example.task) for name, (x, y) in example.clients().items()
    }
    x, y = example.test()
    return clients, Dataset((x,), y).fit(example.task)


def pooled(parts: Mapping[str, Dataset]) -> Dataset:
    """Return the examples of all clients together."""
    inputs = zip(*(part.inputs for part in parts.values()), strict=True)
    targets = [part.targets for part in parts.values() if part.targets is not None]
    return Dataset(
        tuple(np.concatenate(arrays) for arrays in inputs),
        np.concatenate(targets) if targets else None,
    )


def alone(example: Example, data: Dataset, test: Dataset, seed: int) -> dict[str, float]:
    """Return the scores of the model after as many epochs on one set of data."""
    model, training = new_model(example), example.training
    first = model.first_weights() or initial_weights(model.manifest, seed)
    model.set_weights(first)
    scaling = Scaling.none(example.task)
    if example.task.standardizes:
        scaling = merge([Statistics.of(example.task, data.inputs, data.targets)])
    targets = None if data.targets is None else scaling.prepare_target(data.targets)
    model.fit(
        scaling.prepare(data.inputs),
        targets,
        epochs=training["rounds"] * training["epochs"],
        batch_size=training["batch_size"],
        learning_rate=training["learning_rate"],
        seed=seed,
    )
    return model.evaluate(scaling.prepare(test.inputs), test.targets, scaling)


def federated(
    example: Example,
    parts: Mapping[str, Dataset],
    test: Dataset,
    codec: str,
    seed: int,
    runtime: str,
) -> dict[str, Any]:
    """Return scores and bytes of a federation: payload bytes per client and round."""  # fmt: skip
    training = dict(example.training)
    settings = Settings.model_validate(
        {
            "name": "example",
            "rounds": training.pop("rounds"),
            "seed": seed,
            "training": training,
            "compression": {"uplink": codec},
            "clients": {"minimum": len(parts), "quorum": 1.0},
            "evaluation": {"dataset": "the example's", "clients": 0},
        }
    )
    model = new_model(example)
    examples = {name: Examples(example.task, part) for name, part in parts.items()}

    def make_trainer(name: str, plan: pb.Plan, manifest: Manifest, step: bytes | None) -> Trainer:
        if step is not None:
            return LitertTrainer(plan, manifest, step, examples[name], client=name, trusted=True)
        return KerasTrainer(plan, manifest, examples[name], client=name, model=model)

    metrics = simulate(
        settings,
        model_json=model.model_json,
        manifest=model.manifest,
        task=example.task,
        clients={name: part.summary() for name, part in examples.items()},
        make_trainer=make_trainer,
        evaluator=KerasEvaluator(model, test),
        first_weights=model.first_weights(),
        runtime=runtime,
        step=offered_step(model, settings) if runtime == "litert" else None,
    )
    totals, share = metrics["final"]["totals"], len(parts) * settings.rounds
    return {
        "scores": metrics["final"]["scores"],
        "up": totals["uplink"]["payload_bytes"] / share,
        "down": totals["downlink"]["payload_bytes"] / share,
        "float32_bytes": metrics["float32_bytes"],
    }


def measure(example: Example) -> dict[str, Any]:
    """Return all figures of an example, a list over seeds each."""
    parts, test = fitting(example)
    all_ = pooled(parts)
    found: dict[str, Any] = {
        "task": example.task.as_dict(),
        "training": dict(example.training),
        "examples": {name: len(part) for name, part in parts.items()},
        "tests": len(test),
        "pooled": [alone(example, all_, test, seed) for seed in SEEDS],
        "alone": [
            _mean([alone(example, part, test, seed) for part in parts.values()]) for seed in SEEDS
        ],
    }
    runs = [*((codec, "keras") for codec in CODECS), (ON_LITERT, "litert")]
    found["federated"] = {
        f"{codec} {runtime}": [
            federated(example, parts, test, codec, seed, runtime) for seed in SEEDS
        ]
        for codec, runtime in runs
    }
    return found


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(s[name] for s in scores) for name in scores[0]}


def main(names: list[str]) -> None:
    """Measure the named examples, or all; keep what was measured of others."""
    known = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else {"examples": {}}
    for name in names or EXAMPLES:
        try:
            known["examples"][name] = measure(EXAMPLES[name])
        except (SystemExit, DatasetError) as error:
            log.warning("%s is left out: %s", name, error)
            continue
        known["machine"] = machine()
        RESULT.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
        print(f"{name}: measured", flush=True)


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main(sys.argv[1:])
