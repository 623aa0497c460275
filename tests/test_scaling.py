"""Standardisation from sums that clients send: the same as if the data lay in one place."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherfed.datasets.dataset import Dataset
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import (
    read_scaling,
    read_statistics,
    scaling_message,
    statistics_message,
)
from featherfed.tasks.scaling import FeatureScale, FeatureSums, Scaling, Statistics, merge
from featherfed.tasks.task import Input, Target, TargetKind, Task

TASK = Task(
    (Input("x", "float32", (3, 2), standardize=True), Input("plain", "float32", (1,))),
    Target(TargetKind.VALUES, standardize=True),
)


def one_feature(values: npt.ArrayLike) -> FeatureScale:
    return FeatureSums.of(np.asarray(values, np.float32)).scale()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(2, 200),
    cuts=st.lists(st.integers(1, 199), max_size=6),
    offset=st.floats(-1e6, 1e6),
    spread=st.floats(1e-3, 1e5),
)
def test_sums_of_shards_give_the_scaling_of_the_whole(
    seed: int, count: int, cuts: list[int], offset: float, spread: float
) -> None:
    draw = np.random.default_rng(seed)
    x = (offset + spread * draw.normal(0, 1, (count, 3, 2))).astype(np.float32)
    plain = np.zeros((count, 1), np.float32)
    y = (spread * draw.normal(0, 1, count)).astype(np.float32)
    places = [0, *sorted({c for c in cuts if c < count}), count]
    shards = [slice(a, b) for a, b in itertools.pairwise(places)]
    told = [Statistics.of(TASK, [x[s], plain[s]], y[s]) for s in shards]
    told = [read_statistics(statistics_message(one), TASK) for one in told]  # over the link
    scaling = read_scaling(scaling_message(merge(told)), TASK)
    whole = merge([Statistics.of(TASK, [x, plain], y)])
    flat = x.astype(np.float64).reshape(-1, 2)
    step = 1.2e-7 * np.abs(flat).max()  # of a float32 of this size
    for found in (scaling, whole):
        scale, target = found.inputs[0], found.target
        assert scale is not None
        assert target is not None
        assert found.inputs[1] is None
        np.testing.assert_allclose(scale.mean, flat.mean(axis=0), rtol=1e-6, atol=step)
        large = flat.std(axis=0) > 10 * step
        np.testing.assert_allclose(
            scale.deviation[large], flat.std(axis=0)[large], rtol=1e-3, atol=step
        )
        np.testing.assert_allclose(target.deviation, y.std(dtype=np.float64), rtol=1e-5)


def test_features_that_never_change_are_only_centred() -> None:
    for value in (0.0, 3.0, 1e6, -1e30, 1e-30, 16777217.0):
        values = np.full((100_000,), value, np.float32)
        scale = one_feature(values)
        assert scale.deviation.tolist() == [1.0]
        np.testing.assert_array_equal(scale.apply(values), 0)
        np.testing.assert_array_equal(scale.invert(scale.apply(values)), values)


@pytest.mark.parametrize("offset", [1e6, -1e6, 101_325.0])
@pytest.mark.parametrize("width", [1.0, 10.0])
def test_far_from_zero(offset: float, width: float) -> None:
    values = np.random.default_rng(0).uniform(-width, width, 50_000)
    values = (offset + values).astype(np.float32)
    parts = [FeatureSums.of(part) for part in np.split(values, 50)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    for scale in (one_feature(values), total.scale()):
        assert scale.deviation[0] == pytest.approx(values.std(dtype=np.float64), rel=1e-3)
        standardised = scale.apply(values)
        assert abs(standardised.mean(dtype=np.float64)) < 0.06
        assert standardised.std(dtype=np.float64) == pytest.approx(1, rel=1e-3)


def test_integers_and_truths() -> None:
    """Numbers of any kind become float32 before they are standardised."""
    task = Task((Input("x", "float32", (2,), standardize=True),), Target(TargetKind.INPUT))
    for values in (np.arange(20).reshape(10, 2), np.arange(20).reshape(10, 2) % 3 == 0):
        data = Dataset((values,)).fit(task)
        scaling = merge([Statistics.of(task, data.inputs, None)])
        (prepared,) = scaling.prepare(data.inputs)
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(prepared.std(axis=0), 1, rtol=1e-5)


def test_what_contradicts_itself_is_refused() -> None:
    x = np.random.default_rng(0).normal(1e6, 1, (500, 2)).astype(np.float32)
    good = FeatureSums.of(x)
    good.check(2)
    for bad in (
        FeatureSums(0.0, good.sums, good.squares),
        FeatureSums(good.count, good.sums[:1], good.squares),
        FeatureSums(good.count, good.sums * np.nan, good.squares),
        FeatureSums(good.count, good.sums, good.squares * np.inf),
        FeatureSums(good.count, good.sums, good.squares / 2),
    ):
        with pytest.raises(TaskError):
            bad.check(2)
    with pytest.raises(TaskError, match="no client"):
        merge([])
    with pytest.raises(TaskError, match="other tensors"):
        Scaling.none(TASK).check(TASK)
