"""Federated runs of Keras clients in this process, of which some may send what they like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from support.models import summary

from featherfed.api.build import KerasEvaluator, build_model, run_task
from featherfed.datasets.dataset import Dataset
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.keras_trainer import KerasTrainer
from featherfed.edge_client.trainer import Trainer
from featherfed.server.settings.settings import Settings
from featherfed.sweep.simulate import simulate


def keras_run(
    settings: Settings,
    parts: Mapping[str, Dataset],
    test: Dataset,
    wrap: Callable[[str, Trainer], Trainer],
) -> dict[str, Any]:
    """Return a run's metrics; `parts`: data by client, `wrap`: what stands for its trainer."""
    task = run_task(settings, test)
    model = build_model(settings, task)

    def make_trainer(name: str, plan: Any, manifest: Any, step: Any) -> Trainer:
        examples = Examples(task, parts[name])
        return wrap(name, KerasTrainer(plan, manifest, examples, client=name, model=model))

    data = {name: summary(task, len(part)) for name, part in parts.items()}
    told: dict[str, Any] = simulate(
        settings, model_json=model.model_json, manifest=model.manifest,
        evaluator=KerasEvaluator(model, test), clients=data, make_trainer=make_trainer,
        task=task,
        first_weights=model.first_weights(),
    )  # fmt: skip
    return told
