"""Export the newest model as releases for devices that only infer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from featherfed.api.build import Served, representative
from featherfed.models.errors import ModelError
from featherfed.models.export import KINDS, ModelFiles
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Busy, Refused
from featherfed.server.transfers.releases import Releases
from featherfed.tasks.scaling import Scaling

WAIT_SECONDS = 5.0
"""How long a device waits before it asks again for a file that is still to be made."""


def build_releases(
    output: Path,
    coordinator: Coordinator,
    served: Served,
    lock: threading.Lock,
) -> Releases:
    """Return the releases of the coordinator's run, stored in a folder of its own in `output`.

    `lock` is held while the model, which the evaluator uses too, is exported.
    """
    return Releases(
        output / "releases" / coordinator.plan.run,
        KINDS,
        lambda: coordinator.newest_version,
        _maker(output, coordinator, served, lock),
    )


def _maker(
    output: Path, coordinator: Coordinator, served: Served, lock: threading.Lock
) -> Callable[[str], tuple[int, bytes]]:
    model = served.model

    def make(kind: str) -> tuple[int, bytes]:
        with lock:
            version, weights = coordinator.newest_model()
            model.set_weights(weights)
            scaling = coordinator.scaling() or Scaling.none(model.task)
            if kind == "int8" and coordinator.model_files.is_waiting:
                raise Busy("clients still measure the ranges of the int8 file", WAIT_SECONDS)
            told = coordinator.model_files.measured().ranges
            files = ModelFiles(model, output, representative(served, scaling), scaling, told)
            try:
                return version, files.tflite(kind)
            except ModelError as error:
                raise Refused(pb.MISSING_CAPABILITY, str(error)) from error

    return make
