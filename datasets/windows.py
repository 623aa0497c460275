"""Cuts examples from long series: windows of rows, and the rows after each that it predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featherfed.datasets.dataset import DatasetError
from featherfed.tasks.task import Values, Window


def ends_of_series(count: int, group: Values | None) -> npt.NDArray[np.int64]:
    """Return where each series among `count` rows ends, int64, ascending, the last one `count`.

    A series ends where `group` [count] changes; without it there is one.
    """
    if group is None:
        return np.array([count])
    changes = np.flatnonzero(group[1:] != group[:-1]) + 1
    return np.append(changes, count).astype(np.int64)


def cut(
    inputs: Sequence[Values],
    targets: Values | None,
    ends: npt.NDArray[np.int64],
    window: Window,
) -> tuple[list[Values], Values | None]:
    """Return the windows [N, length, ...] of each input [rows, ...], and the targets [N, ...].

    `targets` [rows, ...]: an example's are the `horizon` rows after it, or with horizon 0 the one
    of its last row. Of a single series, windows are views of its rows. Raises DatasetError if no
    series is long enough.
    """
    starts = _starts(ends, window)
    if not len(starts):
        longest = int(np.diff(ends, prepend=0).max())
        raise DatasetError(
            f"the longest series has {longest} rows, too few for windows of {window.length} and "
            f"a horizon of {window.horizon}; a series is rows in a row"
            + (f" of one {window.group}, so sort by it" if window.group else "")
        )
    cut_inputs = [_windows(rows, starts, window.length, len(ends) == 1) for rows in inputs]
    if targets is None:
        return cut_inputs, None
    if not window.horizon:
        return cut_inputs, targets[starts + window.length - 1]
    after = starts[:, None] + window.length + np.arange(window.horizon)
    return cut_inputs, targets[after]


def _starts(ends: npt.NDArray[np.int64], window: Window) -> npt.NDArray[np.int64]:
    """Return the first row of each window."""
    begins = np.concatenate([[0], ends[:-1]])
    need = window.length + window.horizon
    ranges = [
        np.arange(begin, end - need + 1, window.stride)
        for begin, end in zip(begins, ends, strict=True)
    ]
    return np.concatenate(ranges).astype(np.int64)


def _windows(rows: Values, starts: npt.NDArray[np.int64], length: int, as_views: bool) -> Values:
    if not as_views:
        copied: Values = rows[starts[:, None] + np.arange(length)]
        return copied
    all_ = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    step = int(starts[1] - starts[0]) if len(starts) > 1 else 1
    # The new axis comes last; it belongs behind the first.
    windows: Values = np.moveaxis(all_[::step][: len(starts)], -1, 1)
    return windows
