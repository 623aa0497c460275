"""Export the newest model as releases for devices that only infer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from featherfed.models.export import KINDS, tflite_bytes
from featherfed.models.optimized import FederatedModel
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.transfers.releases import Releases
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Values


def build_releases(
    output: Path,
    coordinator: Coordinator,
    model: FederatedModel,
    calibration: Sequence[Values],
    lock: threading.Lock,
) -> Releases:
    """Return the releases of the coordinator's run, stored in a folder of its own in `output`.

    `lock` is held while `model`, which the evaluator uses too, is exported.
    """
    return Releases(
        output / "releases" / coordinator.plan.run,
        KINDS,
        lambda: coordinator.newest_version,
        _maker(coordinator, model, calibration, lock),
    )


def _maker(
    coordinator: Coordinator,
    model: FederatedModel,
    calibration: Sequence[Values],
    lock: threading.Lock,
) -> Callable[[str], tuple[int, bytes]]:
    def make(kind: str) -> tuple[int, bytes]:
        with lock:
            version, weights = coordinator.newest_model()
            model.set_weights(weights)
            scaling = coordinator.scaling() or Scaling.none(model.task)
            return version, tflite_bytes(model, kind, scaling.prepare(calibration), scaling)

    return make
