"""Make the int8 file of a final model from ranges that clients measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from featherfed.compression.arrays import Array
from featherfed.models.errors import ModelError
from featherfed.models.export import ModelFiles
from featherfed.models.optimized import FederatedModel
from featherfed.models.tflite import tensor_places
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.model_files import ModelFile
from featherfed.server.errors import Refused
from featherfed.server.rounds.ranges import Ranges
from featherfed.tasks.scaling import Scaling


class KerasQuantizer:
    """Exports a model with given weights, to be measured and as int8.

    `lock` is held while the model, which has one set of weights, is exported.
    """

    def __init__(
        self, model: FederatedModel, lock: threading.Lock, scaling: Callable[[], Scaling | None]
    ) -> None:
        """`scaling`: gives how the clients' data are standardised; None: they are not."""
        self._model = model
        self._lock = lock
        self._scaling = scaling

    @property
    def needs_ranges(self) -> bool:
        """Whether int8 files need ranges, which quantization-aware training learns."""
        return not self._model.optimization.method.quantizes

    def file_to_measure(self, weights: Sequence[Array]) -> ModelFile:
        """Return the file whose values are measured; raise Refused if there is none."""
        with self._lock:
            try:
                found = self._files(weights, None).calibration()
            except ModelError as error:
                raise Refused(pb.MISSING_CAPABILITY, str(error)) from error
            return ModelFile(found.content, found.inputs, found.outputs, len(found.tensors))

    def int8_file(self, weights: Sequence[Array], ranges: Ranges | None) -> ModelFile:
        """Return the int8 file of the model; raise Refused if there is none."""
        with self._lock:
            files = self._files(weights, ranges)
            try:
                content = files.tflite("int8")
            except ModelError as error:
                raise Refused(pb.MISSING_CAPABILITY, str(error)) from error
            return ModelFile(content, *tensor_places(content, files.names("int8")))

    def _files(self, weights: Sequence[Array], ranges: Ranges | None) -> ModelFiles:
        self._model.set_weights(weights)
        scaling = self._scaling() or Scaling.none(self._model.task)
        return ModelFiles(self._model, Path(), None, scaling, ranges)
