"""Reads and sets how many threads TensorFlow computes with; results depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featherfed.models.importing import importing_tensorflow


@dataclass(frozen=True)
class Threads:
    """Threads within an operation and for operations side by side; 0: one per core."""

    intra: int
    inter: int

    @classmethod
    def now(cls) -> Threads:
        """Return what this process computes with."""
        threading = _threading()
        return cls(
            threading.get_intra_op_parallelism_threads(),
            threading.get_inter_op_parallelism_threads(),
        )

    def use(self) -> None:
        """Set them for this process, unless they are already.

        Raises RuntimeError if TensorFlow has started its threads with other numbers.
        """
        if Threads.now() != self:
            _threading().set_intra_op_parallelism_threads(self.intra)
            _threading().set_inter_op_parallelism_threads(self.inter)


ONE_THREAD = Threads(1, 1)


def _threading() -> Any:
    with importing_tensorflow():
        import tensorflow as tf

    return tf.config.threading
