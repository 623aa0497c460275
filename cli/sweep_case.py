"""One run of a sweep: a federation without gRPC."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

from featherfed.api.machine import machine
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.server.coordinator.admission import LITERT
from featherfed.server.errors import ServerError
from featherfed.sweep.grid import Case
from featherfed.sweep.simulate import Workers, simulate


def run_case(
    case: Case, on_round: Callable[[], None] = lambda: None, workers: int = 1
) -> dict[str, Any]:
    """Return the metrics of a case, as in metrics.json; `on_round` is called after each round.

    `workers`: processes in which its clients train, for 1 this one alone.
    """
    # TensorFlow, which the workers need, and not the process that waits for them.
    from featherfed.api.build import KerasEvaluator, build_model, run_task
    from featherfed.api.client_trainers import ClientTrainers
    from featherfed.api.training_step import offered_step
    from featherfed.edge_client.examples import Examples

    settings = case.settings
    train, test = load_train_test(case.dataset)
    shards = partition(train.labels, case.clients, case.partition, case.seed)
    data = {f"client-{i}": train.take(indices) for i, indices in enumerate(shards)}
    task = run_task(settings, test)
    examples = {name: Examples.of(task, part, 0.0, name) for name, part in data.items()}
    model = build_model(settings, task)

    step = offered_step(model, settings) if case.runtime == LITERT else None
    if step is not None and not step.content:
        raise ServerError(f"{case.name}: {step.missing}")

    trainers = ClientTrainers(examples, model)

    def count(round_: int, scores: object) -> None:
        if round_ <= settings.rounds:  # one that calibrates comes after them
            on_round()

    return simulate(
        settings,
        model_json=model.model_json,
        manifest=model.manifest,
        task=task,
        clients={name: part.summary() for name, part in examples.items()},
        make_trainer=trainers,
        evaluator=KerasEvaluator(model, test),
        first_weights=model.first_weights(),
        on_round=count,
        extra={
            "featherfed": importlib.metadata.version("featherfed"),
            "num_test_examples": len(test),
            "machine": machine(),
        },
        runtime=case.runtime,
        step=step,
        workers=Workers(workers, trainers.only) if workers > 1 else None,
    )
