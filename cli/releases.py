"""Export the newest model as releases for devices that only infer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from featherfed.datasets.dataset import Dataset
from featherfed.models.export import KINDS, export_kind
from featherfed.models.optimized import FederatedModel
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.transfers.releases import Releases


def build_releases(
    output: Path,
    coordinator: Coordinator,
    model: FederatedModel,
    calibration: Dataset,
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
    coordinator: Coordinator, model: FederatedModel, calibration: Dataset, lock: threading.Lock
) -> Callable[[str], tuple[int, bytes]]:
    def make(kind: str) -> tuple[int, bytes]:
        with lock:
            version, weights = coordinator.newest_model()
            model.set_weights(weights)
            images, names = calibration.images, calibration.class_names
            return version, export_kind(model, kind, images, names)

    return make
