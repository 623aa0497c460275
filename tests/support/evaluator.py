"""A server's evaluator that needs no data."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.server.coordinator.evaluation import Evaluation
from featherfed.server.settings.settings import EvaluationSettings
from featherfed.tasks.scaling import Scaling

NO_CLIENT = (
    {"clients": 0} if "clients" in EvaluationSettings.model_fields else {"every_client": False}
)
"""Settings to evaluate the global model alone, for the code of before (benchmarks/attacks), too."""


class DistanceEvaluator:
    """An evaluator whose loss is the mean square of the weights' distance from one."""

    def set_scaling(self, scaling: Scaling) -> None:
        """Do nothing: it needs no data."""

    def evaluate(self, weights: Sequence[Array]) -> Evaluation:
        loss = float(np.mean([np.mean((w - 1) ** 2) for w in weights]))
        return Evaluation({"loss": loss, "accuracy": 1 / (1 + loss)}, json.dumps([0.5, 0.5]))
