"""How rotated values become bits, and what peaks gain over signs."""

from __future__ import annotations

import numpy as np
import pytest

from featherfed.compression.arrays import Array
from featherfed.compression.context import Context
from featherfed.compression.errors import WireError
from featherfed.compression.key import Key
from featherfed.compression.quantizers import GROUP, QUANTIZERS
from featherfed.compression.sketch import Sketch

DRAWS = 40


@pytest.mark.parametrize("bits", QUANTIZERS)
def test_levels_come_back_from_their_bytes(bits: float) -> None:
    quantizer = QUANTIZERS[bits]
    values = np.random.default_rng(0).standard_normal(8 * GROUP).astype(np.float32)
    levels = quantizer.levels(values)
    data = quantizer.pack(levels.copy())
    assert len(data) == quantizer.size(values.size) == values.size * bits / 8
    assert np.array_equal(quantizer.unpack(data, values.size), levels)


def test_a_peak_is_the_largest_of_its_group() -> None:
    values = np.zeros(2 * GROUP, np.float32)
    values[[3, GROUP + 31]] = 2, -5
    values[[9, GROUP]] = -1, 4
    levels = QUANTIZERS[0.1875].levels(values)
    assert np.flatnonzero(levels).tolist() == [3, GROUP + 31]
    assert levels[[3, GROUP + 31]].tolist() == [1, -1]


def means_and_errors(codec: Sketch, update: list[Array]) -> tuple[list[Array], float]:
    """Return the mean of many sketches of an update, and their error times their rate."""
    shapes, energy = [t.shape for t in update], sum(float(np.vdot(t, t)) for t in update)
    means, error = [np.zeros_like(t) for t in update], 0.0
    for seed in range(DRAWS):
        context = Context(Key.root(seed))
        decoded = codec.decode(codec.encode(update, context), shapes, context)
        for mean, tensor, true in zip(means, decoded, update, strict=True):
            mean += tensor / DRAWS
            error += float(np.square(tensor - true).sum()) / energy / DRAWS
    return means, error * codec.density


def test_peaks_are_unbiased_at_two_thirds_of_the_noise() -> None:
    draw = np.random.default_rng(1)
    # Of large and of small values, in tensors and rows: blocks of one scale must not mix them up.
    update = [
        (draw.standard_normal((300, 40)) * draw.lognormal(0, 0.5, (300, 1))).astype(np.float32),
        (draw.standard_normal((64, 50)) * 0.5).astype(np.float32),
    ]
    means, error = means_and_errors(Sketch(0.05, 0.1875), update)
    for mean, true in zip(means, update, strict=True):
        assert np.vdot(mean, true) / np.vdot(true, true) == pytest.approx(1, abs=0.1)
    assert 0.85 < error < 1.1
    _, of_signs = means_and_errors(Sketch(0.05, 1), update)
    assert error < 0.75 * of_signs


def test_a_byte_too_few_or_too_many_of_peaks_is_refused() -> None:
    update = [np.ones((64, 64), np.float32)]
    codec, context = Sketch(0.03, 0.1875), Context(Key.root(1))
    data = codec.encode(update, context)
    assert len(data) == 2 + 15
    for wrong in (data[:-1], data + b"0"):
        with pytest.raises(WireError):
            codec.decode(wrong, [(64, 64)], context)
