"""Ranges of a model's values that clients measured, and the ones that an int8 file is made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.errors import TaskError

Ranges = npt.NDArray[np.float32]
"""Smallest and largest value of each tensor, float32 [tensors, 2]."""

MAX_MAGNITUDE = 1e18
"""Largest value of a range: no model of any use has one, and its square is no float32 any more."""
MAX_EXAMPLES = 200
"""Most examples that a client measures, as many as of a data set on the server."""


def read_ranges(report: pb.RangesReport, count: int) -> bytes:
    """Return a client's ranges as they are stored, little-endian float32 [count, 2].

    Empty if it has none.

    Raises TaskError for what no examples give: not `count` of each, a value that is not finite or
    above MAX_MAGNITUDE, an end below the beginning, or another number of examples than possible.
    """
    if not (report.lows or report.highs or report.num_examples):
        return b""
    if (len(report.lows), len(report.highs)) != (count, count):
        raise TaskError(
            f"{len(report.lows)} smallest and {len(report.highs)} largest values; the file has "
            f"{count} tensors to measure"
        )
    if not 1 <= report.num_examples <= MAX_EXAMPLES:
        raise TaskError(
            f"ranges of {report.num_examples} examples; 1 to {MAX_EXAMPLES} are possible"
        )
    ranges = np.array([report.lows, report.highs], "<f4").T
    odd = ~(np.isfinite(ranges) & (np.abs(ranges) <= MAX_MAGNITUDE)).all(axis=1)
    odd |= ~(ranges[:, 0] <= ranges[:, 1])
    if odd.any():
        number = int(np.argmax(odd))
        low, high = ranges[number]
        raise TaskError(f"the range of tensor {number} of {count} is {low:.3g} to {high:.3g}")
    return np.ascontiguousarray(ranges).tobytes()


def stored_ranges(blob: bytes) -> Ranges:
    """Return what `read_ranges` made of a report, float32 [tensors, 2]."""
    return np.frombuffer(blob, "<f4").reshape(-1, 2).astype(np.float32)


def merge_ranges(reports: Sequence[Ranges]) -> Ranges:
    """Return the ranges of all clients together, float32 [tensors, 2]; there is at least one.

    The smallest beginning and the largest end, but neither is further than half the width of the
    clients' median range outside of that. So as long as fewer than half of them lie, a tensor's
    range is at most twice as wide as an honest median, which costs it one of eight bits; and what
    lies in the median range is always inside.
    """
    stacked = np.stack(reports).astype(np.float64)
    low, high = np.median(stacked[:, :, 0], axis=0), np.median(stacked[:, :, 1], axis=0)
    margin = (high - low) / 2
    merged = [
        np.maximum(stacked[:, :, 0].min(axis=0), low - margin),
        np.minimum(stacked[:, :, 1].max(axis=0), high + margin),
    ]
    return np.stack(merged, axis=1).astype(np.float32)
