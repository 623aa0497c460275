"""Measuring the moving averages of batch normalisation of given weights, without training them.

A mean of noisy updates stands elsewhere than where any client's averages were made. So the last
round measures them of the model as it is: steps at learning rate 0 move nothing but the averages.
They start at zero, and are divided by what a moving average of so many steps lacks (as in Adam,
Kingma and Ba 2015), so that nothing is left of the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.datasets.order import epoch_order
from featherfed.edge_client.examples import Examples

MAX_STEPS = 64
"""Most batches that a client calibrates by; a moving average forgets older ones anyway."""


def without_averages(manifest: Manifest, weights: Sequence[Array]) -> list[Array]:
    """Return weights whose moving averages are zero, to calibrate from."""
    both = zip(manifest, weights, strict=True)
    return [np.zeros_like(tensor) if spec.momentum else tensor for spec, tensor in both]


def calibrated(
    manifest: Manifest, weights: Sequence[Array], measured: Sequence[Array], steps: int
) -> list[Array]:
    """Return `weights` with the averages `measured` by so many steps from `without_averages`."""
    return [
        after / np.float32(1 - spec.momentum**steps) if spec.momentum else before
        for spec, before, after in zip(manifest, weights, measured, strict=True)
    ]


def calibration_batches(
    examples: Examples, batch_size: int, seed: int
) -> tuple[int, npt.NDArray[np.int64]]:
    """Return how many steps a client calibrates by, and on which of its examples, int64 [N].

    All batches are full, unless there is only one.
    """
    count = len(examples.training)
    steps = min(MAX_STEPS, max(1, count // batch_size))
    return steps, epoch_order(count, 0, seed)[: steps * batch_size]
