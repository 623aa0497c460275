"""The noise of sketches: told from what arrives, and summed as the mean sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import FULL_SHARE, Average, WeightedUpdate
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec
from featherfed.compression.exchange.masks import Masks, magnitude_masks, mask_weights
from featherfed.compression.exchange.round import FULL_RATE, RoundContext, round_key
from featherfed.compression.exchange.update import encode_update, receive_update
from featherfed.compression.importance import Allocation, measure_importance
from featherfed.compression.quantizers import GROUP, QUANTIZERS
from featherfed.compression.registry import parse_codec
from featherfed.compression.sparse import dense, energy

MODEL = Manifest(
    (
        TensorSpec("kernel", (300, 80), prunable=True),
        TensorSpec("bias", (80,)),
        TensorSpec("mean", (80,), Role.STATISTIC),
        TensorSpec("variance", (80,), Role.NONNEGATIVE),
        TensorSpec("head", (80, 40), prunable=True),
        TensorSpec("scale", ()),
    )
)
TRAINABLE = [i for i, spec in enumerate(MODEL) if spec.role is Role.TRAINABLE]
WEIGHTS = (100, 300, 50, 800, 250)
DRAWS = 48
CODECS = ["sketch(0.06, 0.1875)", "sketch(0.1)", "sketch(0.2, 2)", "sketch(0.4, 4)"]
"""One of each quantizer."""


def some_update(seed: int) -> list[Array]:
    """Rows and tensors of different size, and statistics that move far."""
    rng = np.random.default_rng(seed)
    update = [rng.normal(size=spec.shape) * 0.01 for spec in MODEL]
    update[0] = update[0] * np.exp(np.random.default_rng(99).normal(size=(300, 1)))
    update[2] += 5
    return [np.asarray(tensor, np.float32) for tensor in update]


def trained(tensors: Sequence[Array]) -> list[Array]:
    return [tensors[i] for i in TRAINABLE]


def total(tensors: Sequence[Array]) -> float:
    """Return the energy of the trainable tensors."""
    return sum(map(energy, trained(tensors)))


def the_round(
    seed: int, allocation: Allocation | None = None, masks: Masks | None = None
) -> RoundContext:
    no_masks: Masks = [None] * len(MODEL)
    return RoundContext(round_key(seed, 1), len(WEIGHTS), masks or no_masks, allocation)


def sent(text: str, round_: RoundContext, slot: int, update: Sequence[Array]) -> bytes:
    codec, context = parse_codec(text), round_.for_slot(slot)
    return encode_update(codec, MODEL, update, masks=round_.masks, context=context).payload


# ---- what one payload tells ----


@pytest.mark.parametrize("bits", QUANTIZERS)
def test_a_quantizer_expands_normal_values_as_it_says(bits: float) -> None:
    quantizer = QUANTIZERS[bits]
    z = np.random.default_rng(3).standard_normal(2**14 * GROUP).astype(np.float32)
    levels = quantizer.levels(z).astype(np.float64)
    scale = np.vdot(z, z) / np.vdot(z, levels)
    assert scale**2 * np.vdot(levels, levels) / np.vdot(z, z) == pytest.approx(
        quantizer.expansion, rel=0.005
    )


def test_expansions_are_those_of_the_books() -> None:
    """Max 1960, table II: distortions 0.3634 (non-uniform, of one bit), 0.1188 and 0.01154."""
    distortions = {1: 0.3634, 2: 0.1188, 4: 0.01154}
    for bits, distortion in distortions.items():
        assert QUANTIZERS[bits].expansion == pytest.approx(1 / (1 - distortion), rel=2e-4)
    assert QUANTIZERS[1].expansion == pytest.approx(math.pi / 2)
    peaks = np.abs(np.random.default_rng(4).standard_normal((20_000, GROUP))).max(axis=1)
    assert QUANTIZERS[0.1875].expansion == pytest.approx(GROUP / peaks.mean() ** 2, rel=0.005)


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("text", CODECS)
def test_a_payload_tells_the_energy_before_and_the_noise(
    text: str, pruned: bool, importance: bool
) -> None:
    """In the mean over draws: one draw also has the luck of which coordinates it sends."""
    update = some_update(0)
    masks = magnitude_masks(MODEL, some_update(7), 0.6 if pruned else 0.0)
    kept = mask_weights(update, masks)
    allocation = measure_importance(trained(update)) if importance else None
    before, noise, true_noise = [], [], []
    for seed in range(DRAWS):
        round_ = the_round(seed, allocation, masks)
        payload = sent(text, round_, seed % 5, update)
        received = receive_update(
            parse_codec(text), MODEL, payload, masks=masks, context=round_.for_slot(seed % 5)
        )
        decoded = [dense(tensor) for tensor in received.tensors]
        assert received.noise is not None
        before.append(total(decoded) - received.noise)
        noise.append(received.noise)
        true_noise.append(total([d - u for d, u in zip(decoded, kept, strict=True)]))
    assert np.mean(before) == pytest.approx(total(kept), rel=0.06)
    assert np.mean(noise) == pytest.approx(np.mean(true_noise), rel=0.02)


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("float32", 0.0),
        ("zstd", 0.0),
        ("float16 | zstd", 0.0),
        ("float8", None),
        ("quantize(8) | zstd", None),
        ("topk(0.1) | quantize(4)", None),
        ("eden", None),
    ],
)
def test_other_codecs_have_no_noise_or_cannot_tell(text: str, noise: float | None) -> None:
    update, round_ = some_update(0), the_round(0)
    codec, context = parse_codec(text), round_.for_slot(0)
    received = receive_update(codec, MODEL, sent(text, round_, 0, update), context=context)
    assert received.noise == noise
    lost = [dense(t) - u for t, u in zip(received.tensors, update, strict=True)]
    assert (total(lost) < 0.001 * total(update)) or not codec.traits.near_lossless


def test_an_update_of_zeros_has_no_noise() -> None:
    zeros = [np.zeros(spec.shape, np.float32) for spec in MODEL]
    round_ = the_round(0)
    for text in CODECS:
        payload = sent(text, round_, 0, zeros)
        found = receive_update(parse_codec(text), MODEL, payload, context=round_.for_slot(0))
        assert found.noise == 0


# ---- the noise of a mean ----


def mean_of(
    texts: Sequence[str], round_: RoundContext, updates: Sequence[Sequence[Array]], clip: int = 0
) -> Average:
    average = Average(MODEL, round_, sum(WEIGHTS))
    for slot, (text, update, weight) in enumerate(zip(texts, updates, WEIGHTS, strict=True)):
        payload = sent(text, round_, slot, update)
        average.add(WeightedUpdate(slot, weight, text, payload, clip if slot == 3 else 0))
    return average


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("text", CODECS)
def test_the_noise_of_a_mean_of_unequal_weights_is_told(
    text: str, pruned: bool, importance: bool
) -> None:
    updates = [some_update(seed) for seed in range(5)]
    masks = magnitude_masks(MODEL, some_update(7), 0.6 if pruned else 0.0)
    kept = [mask_weights(update, masks) for update in updates]
    allocation = measure_importance(trained(updates[0])) if importance else None
    shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    true_mean = [
        sum(s * t for s, t in zip(shares, tensors, strict=True))
        for tensors in zip(*kept, strict=True)
    ]
    energies = sum(s * total(update) for s, update in zip(shares, kept, strict=True))
    told, true = [], []
    for seed in range(DRAWS):
        average = mean_of([text] * 5, the_round(seed, allocation, masks), updates)
        noise = average.noise()
        assert noise is not None
        assert noise.update == pytest.approx(energies, rel=0.3), "by one draw"
        told.append(noise.ratio)
        lost = [m - t for m, t in zip(average.mean(), true_mean, strict=True)]
        true.append(total(lost) / energies)
    assert np.mean(told) == pytest.approx(np.mean(true), rel=0.06)


def test_clipping_scales_noise_and_update_and_the_learning_rate_does_not() -> None:
    updates = [some_update(seed) for seed in range(5)]
    round_ = the_round(0)
    texts = ["float32", "float32", "float32", "sketch(0.1)", "float32"]
    whole = mean_of(texts, round_, updates).noise()
    half = mean_of(texts, round_, updates, FULL_SHARE // 2).noise()
    assert whole is not None
    assert half is not None
    assert half.noise == pytest.approx(whole.noise / 4)
    assert half.update < whole.update
    slow = RoundContext(round_.key, 5, round_.masks, None, FULL_RATE // 2)
    assert mean_of(texts, slow, updates).noise() == whole


def test_one_codec_that_cannot_tell_leaves_the_mean_unknown() -> None:
    updates = [some_update(seed) for seed in range(5)]
    assert mean_of(["sketch(0.1)"] * 4 + ["topk(0.1)"], the_round(0), updates).noise() is None
    exact = mean_of(["float16"] * 5, the_round(0), updates).noise()
    assert exact is not None
    assert exact.ratio == 0
    nothing = [[np.zeros(spec.shape, np.float32) for spec in MODEL]] * 5
    assert mean_of(["sketch(0.1)"] * 5, the_round(0), nothing).noise() is None


def test_twice_the_bytes_are_about_half_the_noise() -> None:
    """So what `bytes_for_noise_1` says is right."""
    updates = [some_update(seed) for seed in range(5)]
    ratios = {}
    for density in (0.1, 0.2):
        draws = [mean_of([f"sketch({density})"] * 5, the_round(s), updates) for s in range(8)]
        ratios[density] = np.mean([draw.noise().ratio for draw in draws])  # type: ignore[union-attr]
    assert ratios[0.1] == pytest.approx(2 * ratios[0.2], rel=0.1)
