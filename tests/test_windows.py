"""Windows of long series, against a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.order import held_out_examples
from featherfed.datasets.windows import cut, ends_of_series
from featherfed.edge_client.examples import Examples
from featherfed.tasks.task import Input, Target, TargetKind, Task, Window


def plain(rows: Any, targets: Any, group: list[str], window: Window) -> tuple[list[Any], list[Any]]:
    """Return windows and targets as a person would cut them."""
    examples, answers = [], []
    series: list[list[int]] = []
    for row, name in enumerate(group):
        if row == 0 or name != group[row - 1]:
            series.append([])
        series[-1].append(row)
    for one in series:
        start = 0
        while start + window.length + window.horizon <= len(one):
            inside = one[start : start + window.length]
            after = one[start + window.length : start + window.length + window.horizon]
            examples.append([rows[row].tolist() for row in inside])
            answers.append(
                [targets[row].tolist() for row in after]
                if window.horizon
                else targets[inside[-1]].tolist()
            )
            start += window.stride
    return examples, answers


@given(
    group=st.lists(st.sampled_from("abc"), min_size=1, max_size=30).map(sorted),
    length=st.integers(1, 6),
    stride=st.integers(1, 8),
    horizon=st.integers(0, 4),
    target_width=st.sampled_from([None, 1, 3]),
    grouped=st.booleans(),
)
def test_windows_are_those_of_a_plain_loop(
    group: list[str],
    length: int,
    stride: int,
    horizon: int,
    target_width: int | None,
    grouped: bool,
) -> None:
    count = len(group)
    rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    bytes_ = np.arange(count, dtype=np.uint8).reshape(count, 1)
    shape = (count,) if target_width is None else (count, target_width)
    targets = -np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    window = Window(length, stride, horizon, "house" if grouped else "")
    group = group if grouped else ["all"] * count
    wanted, answers = plain(rows, targets, group, window)
    ends = ends_of_series(count, np.array(group) if grouped else None)
    assert ends.tolist() == sorted(ends.tolist())
    assert ends[-1] == count
    if not wanted:
        with pytest.raises(DatasetError, match=f"too few for windows of {length}"):
            cut([rows, bytes_], targets, ends, window)
        return
    (found, small), after = cut([rows, bytes_], targets, ends, window)
    assert found.tolist() == wanted
    assert small.dtype == np.uint8
    assert small[:, :, 0].tolist() == plain(bytes_[:, 0], targets, group, window)[0]
    assert after is not None
    assert after.tolist() == answers
    assert cut([rows], None, ends, window)[1] is None


def test_windows_of_one_series_take_no_memory_of_their_own() -> None:
    rows = np.zeros((100_000, 4), np.float32)
    (found,), _ = cut([rows], None, ends_of_series(len(rows), None), Window(1000))
    assert found.shape == (99_001, 1000, 4)
    assert np.shares_memory(found, rows)
    task = Task((Input("x", "float32", (1000, 4)),), Target(TargetKind.INPUT))
    examples = Examples.of(task, Dataset((found[:500],), None, ordered=True), 0.1, "kitchen")
    assert np.shares_memory(examples.training.inputs[0], rows)
    assert examples.held_out is not None
    assert np.shares_memory(examples.held_out.inputs[0], rows)


@given(count=st.integers(2, 200), share=st.floats(0, 0.999), name=st.text(max_size=5))
def test_ordered_examples_hold_out_their_tail(count: int, share: float, name: str) -> None:
    kept, held_out = held_out_examples(count, share, name, ordered=True)
    assert np.concatenate([kept, held_out]).tolist() == list(range(count))
    mixed_kept, mixed = held_out_examples(count, share, name, ordered=False)
    assert sorted([*mixed_kept.tolist(), *mixed.tolist()]) == list(range(count))
    assert len(mixed) == len(held_out) == min(max(1, round(count * share)), count - 1)
    again = held_out_examples(count, share, name, ordered=False)
    assert again[1].tolist() == mixed.tolist()


def test_a_window_series_holds_out_what_came_last() -> None:
    task = Task((Input("x", "float32", (2,)),), Target(TargetKind.VALUES))
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    data = Dataset((x,), np.arange(20, dtype=np.float32), ordered=True)
    examples = Examples.of(task, data, 0.25, "kitchen")
    assert examples.held_out is not None
    assert examples.training.targets is not None
    assert examples.held_out.targets is not None
    assert examples.training.targets.tolist() == list(range(15))
    assert examples.held_out.targets.tolist() == list(range(15, 20))
    mixed = Examples.of(task, Dataset((x,), data.targets), 0.25, "kitchen")
    assert mixed.held_out is not None
    assert mixed.held_out.targets is not None
    assert mixed.held_out.targets.tolist() != list(range(15, 20))
    with pytest.raises(DatasetError, match="1 example is too few"):
        Examples.of(task, data.take([0]), 0.1, "kitchen")
