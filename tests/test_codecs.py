"""Every registered codec passes the same checks; then what is special to each part."""

from __future__ import annotations

import contextlib
import hashlib
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.codec_texts import CODECS

from featherfed.compression.arrays import Array
from featherfed.compression.chain import Chain
from featherfed.compression.codec import MAX_MAGNITUDE
from featherfed.compression.context import Context
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.layout import SMALL
from featherfed.compression.exchange.manifest import (
    Fill,
    Manifest,
    Role,
    TensorSpec,
    Uniform,
    weights_digest,
)
from featherfed.compression.exchange.masks import magnitude_mask
from featherfed.compression.exchange.update import (
    EncodedUpdate,
    apply_update,
    decode_update,
    encode_update,
    max_payload,
    subtract,
)
from featherfed.compression.key import Key
from featherfed.compression.registry import MAX_TEXT, STAGES, parse_codec
from featherfed.compression.stages.deadzone import DeadZone
from featherfed.compression.stages.eden import Eden
from featherfed.compression.stages.floats import Float8, Float16
from featherfed.compression.stages.kmeans import KMeans
from featherfed.compression.stages.lowrank import LowRank
from featherfed.compression.stages.qsgd import Qsgd
from featherfed.compression.stages.quantize import Quantize
from featherfed.compression.stages.sign import Sign
from featherfed.compression.stages.topk import TopK

BYTE_STAGES = {"zstd", "range"}
TINY = np.float32(2.0**-149)
SPECIAL = [0.0, -0.0, 1e-38, -1e-38, 2.0**-149, -(2.0**-149), 1.0, -1.0, 1e18, -1e18]
SHAPES = [(), (0,), (1,), (2,), (9,), (1, 1), (3, 5), (3, 0), (0, 3), (2, 3, 4), (33, 20)]

elements = st.one_of(
    st.sampled_from(SPECIAL),
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**59), 2.0**59, width=32),
    st.floats(-(2.0**-120), 2.0**-120, width=32),
)
tensors = st.sampled_from(SHAPES).flatmap(lambda s: arrays(np.float32, s, elements=elements))
tensor_lists = st.lists(tensors, max_size=4)
every_codec = pytest.mark.parametrize("text", CODECS)


def shapes_of(tensors: list[Array]) -> list[tuple[int, ...]]:
    return [t.shape for t in tensors]


def bits(tensors: list[Array]) -> list[bytes]:
    return [t.tobytes() for t in tensors]


def error_bound(codec: Chain, x: Array) -> float:  # noqa: C901 - a case for each stage
    """Return the largest error that any value of x may have, from the definition of each stage."""
    magnitudes = np.sort(np.abs(x).astype(np.float64), axis=None)
    if not x.size:
        return 0.0
    largest, spread = magnitudes[-1], float(max(x.max(), 0)) - float(min(x.min(), 0))
    bound, left = 0.0, x.size
    for stage in codec.stages:
        if isinstance(stage, TopK):
            left = math.ceil(stage.fraction * left)
            bound = max(bound, magnitudes[x.size - left - 1] if left < x.size else 0.0)
        elif isinstance(stage, Float16):
            bound = max(bound, largest * 2.0**-11 + 2.0**-149)
        elif isinstance(stage, Float8):
            bound = max(bound, largest * 0.25 + 2.0**-149)
        elif isinstance(stage, DeadZone):
            step = stage.step * float(np.sqrt(np.mean(magnitudes**2)))
            bound = max(bound, step * 0.67, largest - 126.9 * step) + 127 * 2.0**-149
        elif isinstance(stage, Sign):
            bound = max(bound, largest) + 2.0**-149
        elif isinstance(stage, Qsgd):
            norm = float(np.sqrt(np.sum(magnitudes**2)))
            bound = max(bound, norm / stage.levels * 1.001) + stage.levels * 2.0**-149
        elif isinstance(stage, Eden):
            norm = float(np.sqrt(np.sum(magnitudes**2)))
            bound = max(bound, norm * 1.001 * (1 + math.sqrt(x.size + 64))) + 2.0**-130
        elif isinstance(stage, KMeans):
            bound = max(bound, float(x.max()) - float(x.min()))
        elif isinstance(stage, LowRank):
            if stage.count(x.shape) < x.size:  # what comes after it codes the factors
                return float(np.sqrt(np.sum(magnitudes**2))) * 1.1 + 2.0**-130
        elif isinstance(stage, Quantize):
            top = 2**stage.bits - 1
            bound = max(bound, spread / top * (0.5 + top * 2.0**-22) + top * 2.0**-149)
    return bound


def test_codec_text_is_parsed_in_many_threads_at_once() -> None:
    text = "topk(0.5) | topk(0.5) | quantize(2, channel)"
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(parse_codec, [text] * 4000)) == {parse_codec(text)}


# ---- every codec ----


def test_every_registered_stage_is_in_a_codec_under_test() -> None:
    used = {stage.name for text in CODECS for stage in parse_codec(text).stages}
    assert used == set(STAGES) - {"sketch"}, "test_sketch.py is the sketch's"


@every_codec
@given(tensors=tensor_lists)
@settings(max_examples=60, deadline=None)
def test_decoding_gives_back_the_tensors_within_the_codecs_bound(
    text: str, tensors: list[Array]
) -> None:
    codec = parse_codec(text)
    decoded = codec.decode(codec.encode(tensors), shapes_of(tensors))
    for x, y in zip(tensors, decoded, strict=True):
        error = np.max(np.abs(x.astype(np.float64) - y), initial=0)
        assert error <= error_bound(codec, x)


@every_codec
@given(tensors=tensor_lists)
@settings(max_examples=30, deadline=None)
def test_a_lossless_codec_gives_back_every_bit(text: str, tensors: list[Array]) -> None:
    codec = parse_codec(text)
    if codec.traits.lossless:
        assert bits(codec.decode(codec.encode(tensors), shapes_of(tensors))) == bits(tensors)


@pytest.mark.parametrize(
    ("text", "lossless", "feedback"),
    [
        ("float32 | zstd", True, False),
        ("float16 | zstd", False, False),
        ("quantize(8)", False, True),
        ("topk(0.1) | float16", False, True),
    ],
)
def test_a_chain_is_as_lossy_as_its_worst_stage(text: str, lossless: bool, feedback: bool) -> None:
    codec = parse_codec(text)
    assert (codec.traits.lossless, codec.traits.error_feedback) == (lossless, feedback)


@every_codec
@given(tensors=tensor_lists)
@settings(max_examples=30, deadline=None)
def test_encoding_is_deterministic_and_leaves_its_input_alone(
    text: str, tensors: list[Array]
) -> None:
    before = bits(tensors)
    for tensor in tensors:
        tensor.flags.writeable = False
    first, again = (parse_codec(text).encode(tensors) for _ in range(2))
    assert first == again
    assert bits(tensors) == before


@every_codec
@given(tensors=tensor_lists)
@settings(max_examples=30, deadline=None)
def test_decoded_tensors_are_writable_float32_of_the_exact_shapes(
    text: str, tensors: list[Array]
) -> None:
    codec = parse_codec(text)
    decoded = codec.decode(codec.encode(tensors), shapes_of(tensors))
    assert shapes_of(decoded) == shapes_of(tensors)
    assert all(t.dtype == np.float32 and t.flags.writeable for t in decoded)


@every_codec
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, 2.0**-149, -3.5, 1e18])
def test_constant_tensors_survive(text: str, value: float) -> None:
    codec = parse_codec(text)
    x = np.full((40, 30), value, np.float32)
    (y,) = codec.decode(codec.encode([x]), [x.shape])
    assert np.max(np.abs(x.astype(np.float64) - y)) <= error_bound(codec, x)
    if not value:
        assert not y.any()


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.1e18, -3e38])
@pytest.mark.parametrize("shape", [(), (7,), (30, 40)])
def test_values_that_are_not_finite_or_too_large_are_refused(
    text: str, bad: float, shape: tuple[int, ...]
) -> None:
    x = np.zeros(shape, np.float32)
    x[(-1,) * len(shape)] = bad
    with pytest.raises(CodecError, match="tensor 1 holds NaN, infinity or values beyond 1e\\+18"):
        parse_codec(text).encode([np.zeros(3, np.float32), x])


@every_codec
@given(data=st.binary(min_size=4, max_size=12000))
@settings(max_examples=30, deadline=None)
def test_a_payload_is_never_larger_than_its_limit(text: str, data: bytes) -> None:
    codec = parse_codec(text)
    x = finite(np.frombuffer(data[: len(data) // 4 * 4], "<f4"))
    assert_within_limits(codec, x)


@every_codec
@pytest.mark.parametrize("size", [1, 1023, 1024, 70_000])
def test_random_data_is_never_larger_than_its_limit(text: str, size: int) -> None:
    raw = np.random.Generator(np.random.PCG64(size)).bytes(4 * size)
    assert_within_limits(parse_codec(text), finite(np.frombuffer(raw, "<f4")))


def finite(x: Array) -> Array:
    return np.where(np.abs(x) <= MAX_MAGNITUDE, x, np.float32(1)).astype(np.float32)


def assert_within_limits(codec: Chain, x: Array) -> None:
    plain = Chain(tuple(s for s in codec.stages if s.name not in BYTE_STAGES) or codec.stages)
    limit = codec.limit([x.shape])
    assert len(codec.encode([x])) <= limit + limit // 64 + 64
    if not BYTE_STAGES & {s.name for s in plain.stages}:
        assert len(plain.encode([x])) <= limit
    manifest = Manifest((TensorSpec("x", x.shape),))
    encoded = encode_update(codec, manifest, [x])
    assert len(encoded.payload) <= max_payload(codec, manifest)


@pytest.mark.parametrize("text", ["float32", "quantize(3)", "topk(0.1) | quantize(8)"])
def test_the_limit_is_not_far_above_what_is_needed(text: str) -> None:
    codec, x = parse_codec(text), np.linspace(-1, 1, 5000, dtype=np.float32)
    assert codec.limit([x.shape]) <= 4 * len(codec.encode([x]))


# ---- text ----


@every_codec
def test_text_gives_a_codec_whose_text_gives_an_equal_codec(text: str) -> None:
    codec = parse_codec(text)
    assert str(codec) == text
    again = parse_codec(str(codec))
    assert again == codec
    assert hash(again) == hash(codec)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("quantize(8)|zstd", "quantize(8) | zstd"),
        (" zstd(3) ", "zstd"),
        ("quantize(bits=4, axis=channel)", "quantize(4, channel)"),
        ("quantize(4, tensor)", "quantize(4)"),
        ("quantize(4, 'tensor')", "quantize(4)"),
        ("topk(1)", "topk(1.0)"),
        ("(topk(1e-2) | float16) | zstd(level=19)", "topk(0.01) | float16 | zstd(19)"),
        ("float32()", "float32"),
    ],
)
def test_different_ways_to_write_a_codec_have_one_canonical_text(
    written: str, canonical: str
) -> None:
    assert str(parse_codec(written)) == canonical
    assert parse_codec(written) == parse_codec(canonical)


BAD_TEXT = [
    ("", "not a codec"),
    ("   ", "not a codec"),
    ("|", "not a codec"),
    ("zstd |", "not a codec"),
    ("quantize(8", "arguments are numbers or words"),
    ("topk(0.1) float16", "not a codec"),
    ("zstd\0", "not a codec"),
    ("zstd; zstd", "not a codec"),
    ("lambda: zstd", "unknown stage 'lambda'"),
    ("quantise(8)", "unknown stage 'quantise'; did you mean quantize"),
    ("zst", "did you mean zstd"),
    ("gzip", "unknown stage 'gzip'.*float16.*float32.*quantize.*topk.*zstd"),
    ("__import__", "unknown stage"),
    ("zstd | quantize(8)", "quantize works on tensors and must come before zstd"),
    ("quantize(8) | topk(0.1)", "topk needs floats"),
    ("float16 | quantize(8)", "quantize needs floats"),
    ("float16 | float32", "float32 needs floats"),
    ("float32 | zstd | zstd(19)", "one byte stage is enough"),
    ("quantize", r"quantize takes \(bits, axis\)"),
    ("kmeans(9)", "1 to 8 bits, got 9"),
    ("lowrank(0)", "rank of 1 to 1024, got 0"),
    ("lowrank(2.0)", "rank of 1 to 1024, got 2.0"),
    ("topk()", r"topk takes \(fraction\)"),
    ("quantize(8, channel, 3)", r"quantize takes \(bits, axis\)"),
    ("float32(1)", r"float32 takes \(\)"),
    ("zstd(speed=3)", r"zstd takes \(level\)"),
    ("zstd(level=1, level=2)", "same argument twice"),
    ("zstd(**x)", "arguments are|takes"),
    ("quantize(*x)", "arguments are numbers or words"),
    ("quantize(0)", "1 to 16 bits, got 0"),
    ("quantize(17)", "1 to 16 bits, got 17"),
    ("quantize(8.0)", "1 to 16 bits, got 8.0"),
    ("quantize('8')", "1 to 16 bits, got '8'"),
    ("quantize('8)", "arguments are numbers or words"),
    ("quantize(True)", "1 to 16 bits, got 'True'"),
    ("quantize(None)", "1 to 16 bits, got 'None'"),
    ("zstd(level=1, 2)", "not a codec"),
    ("topk(0.1,)", "arguments are numbers or words"),
    ("quantize(8, row)", "not per 'row'"),
    ("quantize(8, 2)", "not per 2"),
    ("topk(0)", "fraction above 0 and up to 1, got 0"),
    ("topk(1.5)", "got 1.5"),
    ("topk(1e999)", "got inf"),
    ("topk(half)", "got 'half'"),
    ("topk(-0.1)", "arguments are numbers or words"),
    ("topk(1j)", "arguments are numbers or words"),
    ("zstd(0)", "level from 1 to 22, got 0"),
    ("zstd(23)", "level from 1 to 22, got 23"),
    ("zstd(3.0)", "got 3.0"),
    ("zstd(fast)", "got 'fast'"),
    ("topk(0.01 + 0.01)", "arguments are numbers or words"),
    ("topk(topk(0.1))", "arguments are numbers or words"),
    ("topk([0.1])", "arguments are numbers or words"),
    ("os.system(1)", "unknown stage 'os'"),
    ("zstd.level", "joined by"),
    ("zstd()()", "joined by"),
    ("topk(0.1) + zstd", "joined by"),
    ("topk(0.1) or zstd", "joined by"),
    ("'zstd'", "joined by"),
    ("[zstd]", "joined by"),
    ("zstd if x else y", "joined by"),
    ("(zstd := zstd)", "joined by"),
    ("(" * 100 + "zstd" + ")" * 96, "longer than|not a codec"),
    ("-" * 199 + "1", "joined by|not a codec"),
    ("[" * 100 + "]" * 100, "joined by|not a codec"),
    ("|".join(["zstd"] * 40), "one byte stage"),
    ("|".join(["float32"] * 25), "when written out"),
    ("zstd" + " " * MAX_TEXT, "longer than 200 characters"),
    ("zstd" * 100_000, "longer than 200 characters"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXT)
def test_bad_codec_text_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        parse_codec(text)


words = st.sampled_from(
    [
        *STAGES,
        *"()|,.=*:[]{}'\"\\#-+@~ \n\t\0",
        "channel",
        "level",
        "lambda",
        "8",
        "0.1",
        "1e9",
        "if",
    ]
)


@given(text=st.one_of(st.text(max_size=60), st.lists(words, max_size=25).map("".join)))
@settings(max_examples=500, deadline=None)
def test_any_text_gives_a_codec_or_a_codec_error(text: str) -> None:
    with contextlib.suppress(CodecError):
        codec = parse_codec(text)
        assert parse_codec(str(codec)) == codec


def test_a_chain_without_stages_is_refused() -> None:
    with pytest.raises(CodecError, match="at least one stage"):
        Chain(())


# ---- single stages ----


@pytest.mark.parametrize("count", [1, 2, 4, 7, 8, 11, 16])
@pytest.mark.parametrize("axis", ["tensor", "channel"])
@given(x=arrays(np.float32, (17, 3), elements=elements))
@settings(max_examples=30, deadline=None)
def test_quantize_errs_at_most_half_a_step_and_keeps_zeros(count: int, axis: str, x: Array) -> None:
    stage = Quantize(count, axis)
    x[3] = 0
    codes, side = stage.encode(x)
    y = stage.decode(codes, side, x.shape)
    assert not y[x == 0].any()
    top = 2**count - 1
    columns = x.astype(np.float64) if axis == "channel" else x.astype(np.float64).reshape(-1, 1)
    step = (columns.max(axis=0).clip(min=0) - columns.min(axis=0).clip(max=0)) / top
    error = np.abs(columns - y.reshape(columns.shape)).max(axis=0)
    assert (error <= step * (0.5 + top * 2.0**-22) + top * float(TINY)).all()


def test_quantize_per_channel_gives_each_channel_its_own_step() -> None:
    x = np.array([[1, 1000], [-1, -1000], [0.25, 250]], np.float32)
    together, apart = (
        np.abs(x - stage.decode(*stage.encode(x), x.shape)).max(axis=0)
        for stage in (Quantize(8), Quantize(8, "channel"))
    )
    assert apart[0] <= 1 / 255 < together[0]


def test_quantize_codes_are_the_definition_worked_by_hand() -> None:
    codes, side = Quantize(2).encode(np.array([-1, 0, 0.4, 0.6, 1.9, 2], np.float32))
    assert codes.tolist() == [0, 1, 1, 2, 3, 3]
    assert side == np.float32(1).tobytes() + b"\1\0"


@given(x=arrays(np.float32, st.integers(1, 300), elements=elements))
@settings(max_examples=100, deadline=None)
def test_topk_keeps_exactly_the_largest_and_leaves_the_rest(x: Array) -> None:
    stage = TopK(0.1)
    y = stage.decode(*stage.encode(x), x.shape)
    kept = y != 0
    count = math.ceil(0.1 * x.size)
    assert kept.sum() <= count
    assert (y[kept] == x[kept]).all()
    largest = np.sort(np.abs(x))[::-1][:count]
    assert sorted(np.abs(y[kept])) == sorted(v for v in largest if v)
    residual = x - y
    assert (residual[~kept] == x[~kept]).all()
    assert not residual[kept].any()


@pytest.mark.parametrize("gap", [0, 1, 127, 128, 16383, 16384, 300_000])
def test_topk_reaches_positions_any_distance_apart(gap: int) -> None:
    x = np.zeros(gap + 3, np.float32)
    x[[1, gap + 2]] = [3, -4]
    stage = TopK(2 / x.size)
    values, side = stage.encode(x)
    assert values.tolist() == [3, -4]
    assert len(side) == 1 + max(1, math.ceil(gap.bit_length() / 7))
    assert (stage.decode(values, side, x.shape) == x).all()


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-130, 1e-20, 1.0, 3e17])
def test_float16_keeps_its_precision_at_any_scale(scale: float) -> None:
    x = (np.array([1, 0.3, -0.7, 1e-3], np.float64) * scale).astype(np.float32)
    y = Float16().decode(*Float16().encode(x), x.shape)
    assert (np.abs(x.astype(np.float64) - y) <= np.abs(x) * 2.0**-11 + float(TINY) / 2).all()


# ---- updates ----

MODEL = Manifest(
    (
        TensorSpec("kernel", (64, 40), initial=Uniform(0.2), prunable=True),
        TensorSpec("bias", (40,)),
        TensorSpec("mean", (30, 50), Role.STATISTIC),
        TensorSpec("variance", (50, 30), Role.NONNEGATIVE, Fill(1.0)),
    )
)


def some_update(seed: int = 0) -> list[Array]:
    rng = np.random.Generator(np.random.PCG64(seed))
    return [rng.normal(0, 0.01, spec.shape).astype(np.float32) for spec in MODEL]


def half_masks() -> list[Array | None]:
    mask = magnitude_mask(some_update(99)[0], 0.5)
    assert mask.sum() == MODEL.specs[0].size // 2
    return [mask, None, None, None]


@every_codec
@pytest.mark.parametrize("masked", [False, True])
def test_error_feedback_loses_nothing_over_the_rounds(text: str, masked: bool) -> None:
    codec = parse_codec(text)
    masks = half_masks() if masked else None
    sent, meant, residual = [0.0] * 4, [0.0] * 4, None
    for round_number in range(8):
        update = some_update(round_number)
        encoded = encode_update(codec, MODEL, update, masks=masks, residual=residual)
        residual = encoded.residual
        sent = [s + d.astype(np.float64) for s, d in zip(sent, encoded.decoded, strict=True)]
        meant = [m + u.astype(np.float64) for m, u in zip(meant, update, strict=True)]
    assert (residual is not None) == codec.traits.error_feedback
    if residual is None:
        return
    if masks:
        meant[0] = np.where(masks[0], meant[0], 0)
    for s, r, m in zip(sent, residual, meant, strict=True):
        np.testing.assert_allclose(s + r, m, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["float32", "float16 | zstd"])
def test_a_codec_without_feedback_ignores_a_residual(text: str) -> None:
    codec, update = parse_codec(text), some_update()
    encoded = encode_update(codec, MODEL, update, residual=some_update(1))
    assert encoded.residual is None
    assert encoded.payload == encode_update(codec, MODEL, update).payload


@every_codec
def test_a_receiver_decodes_what_the_sender_says_it_will(text: str) -> None:
    codec = parse_codec(text)
    encoded = encode_update(codec, MODEL, some_update())
    again = decode_update(codec, MODEL, encoded.payload)
    assert bits(again) == bits(encoded.decoded)
    assert shapes_of(again) == [spec.shape for spec in MODEL]


@every_codec
def test_masked_coordinates_are_not_sent_and_decode_to_zero(text: str) -> None:
    codec, masks, update = parse_codec(text), half_masks(), some_update()
    full = encode_update(codec, MODEL, update)
    half = encode_update(codec, MODEL, update, masks=masks)
    assert len(half.payload) <= max_payload(codec, MODEL)
    if "lowrank" not in text:  # which has nothing to say about a vector
        assert len(half.payload) < len(full.payload)
    hidden = ~masks[0]
    assert half.decoded[0][~hidden].any()
    assert not half.decoded[0][hidden].any()
    assert half.residual is None or not half.residual[0][hidden].any()
    changed = [update[0] + np.float32(5) * hidden, *update[1:]]
    assert encode_update(codec, MODEL, changed, masks=masks).payload == half.payload


def test_a_residual_at_masked_coordinates_is_forgotten() -> None:
    masks, update = half_masks(), some_update()
    residual = [np.ones(spec.shape, np.float32) for spec in MODEL]
    encoded = encode_update(
        parse_codec("quantize(8)"), MODEL, update, masks=masks, residual=residual
    )
    assert not encoded.residual[0][~masks[0]].any()
    assert encoded.decoded[0][masks[0]].mean() == pytest.approx(1, abs=0.01)


@every_codec
def test_an_update_is_not_modified(text: str) -> None:
    update, residual = some_update(), some_update(1)
    before = bits(update + residual)
    encode_update(parse_codec(text), MODEL, update, masks=half_masks(), residual=residual)
    assert bits(update + residual) == before


@every_codec
def test_statistics_and_small_tensors_travel_near_lossless(text: str) -> None:
    update = some_update()
    decoded = encode_update(parse_codec(text), MODEL, update).decoded
    for u, d in zip(update[1:], decoded[1:], strict=True):
        np.testing.assert_allclose(d, u, rtol=2.0**-11, atol=1e-12)


@pytest.mark.parametrize(("size", "exact"), [(SMALL - 1, True), (SMALL, False)])
def test_a_trainable_tensor_takes_the_codec_from_1024_values_on(size: int, exact: bool) -> None:
    manifest = Manifest((TensorSpec("w", (size,)),))
    x = np.linspace(0.5, 1, size, dtype=np.float32)
    (y,) = encode_update(parse_codec("quantize(1)"), manifest, [x]).decoded
    assert (np.abs(x - y).max() < 1e-3) == exact


@every_codec
def test_a_nonnegative_tensor_never_falls_below_zero(text: str) -> None:
    base = [np.full(spec.shape, 0.01, np.float32) for spec in MODEL]
    update = [np.full(spec.shape, -0.01, np.float32) for spec in MODEL]
    update[3][::2] = -0.5
    decoded = encode_update(parse_codec(text), MODEL, update).decoded
    weights = apply_update(MODEL, base, decoded)
    assert not (weights[3] < 0).any()
    assert (weights[2] < 0.001).all()


def test_a_nonnegative_tensor_has_no_negative_zero() -> None:
    zeros = [np.full(spec.shape, -0.0, np.float32) for spec in MODEL]
    weights = apply_update(MODEL, zeros, zeros)
    assert not np.signbit(weights[3]).any()


@pytest.mark.parametrize("value", [2e18, -2e18, 3e38])
def test_an_update_that_takes_a_weight_too_far_is_refused(value: float) -> None:
    base = [np.full(spec.shape, value / 2, np.float32) for spec in MODEL]
    with pytest.raises(WireError, match="'kernel' beyond"):
        apply_update(MODEL, base, base)


def test_an_update_that_does_not_fit_the_manifest_is_refused() -> None:
    codec, update = parse_codec("float32"), some_update()
    with pytest.raises(ValueError, match="expected 4 tensors, got 3"):
        encode_update(codec, MODEL, update[:3])
    with pytest.raises(ValueError, match="'bias' must be float32 of shape"):
        encode_update(codec, MODEL, [update[0], update[1].reshape(1, -1), *update[2:]])
    with pytest.raises(ValueError, match="got float64"):
        encode_update(codec, MODEL, [update[0].astype(np.float64), *update[1:]])


def test_float32_updates_take_weights_exactly_where_they_should_go() -> None:
    base, codec = initial_weights(MODEL, 3), parse_codec("float32 | zstd")
    trained = [b + u for b, u in zip(base, some_update(), strict=True)]
    encoded: EncodedUpdate = encode_update(codec, MODEL, subtract(trained, base))
    received = apply_update(MODEL, base, decode_update(codec, MODEL, encoded.payload))
    for t, r in zip(trained, received, strict=True):
        np.testing.assert_allclose(r, t, rtol=2.0**-22, atol=1e-9)


# ---- digests ----


def test_the_weights_digest_sees_every_bit_and_the_order() -> None:
    a, b = np.arange(3, dtype=np.float32), np.arange(4, 6, dtype=np.float32)
    seen = {weights_digest([a, b]), weights_digest([b, a])}
    for position in range(8 * a.nbytes):
        raw = bytearray(a.tobytes())
        raw[position // 8] ^= 1 << position % 8
        seen.add(weights_digest([np.frombuffer(raw, np.float32), b]))
    assert len(seen) == 2 + 8 * a.nbytes


def test_the_weights_digest_is_of_little_endian_float32_in_memory_order() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    for same in (a.copy(order="F"), a.astype(">f4")):
        assert weights_digest([same]) == weights_digest([a])
    raw = struct.pack("<6f", 0, 1, 2, 3, 4, 5)
    assert weights_digest([a]) == hashlib.sha256(raw).digest()


SPEC = TensorSpec("w", (2, 3), Role.STATISTIC, Fill(0.5), False)


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, name="v"),
        replace(SPEC, shape=(3, 2)),
        replace(SPEC, shape=(6,)),
        replace(SPEC, role=Role.TRAINABLE),
        replace(SPEC, role=Role.NONNEGATIVE),
        replace(SPEC, initial=Fill(0.25)),
        replace(SPEC, initial=Uniform(0.5)),
        replace(SPEC, prunable=True),
    ],
)
def test_the_manifest_digest_changes_with_every_field(other: TensorSpec) -> None:
    assert Manifest((other,)).digest != Manifest((SPEC,)).digest


def test_the_manifest_digest_sees_order_and_number_and_nothing_else() -> None:
    other = replace(SPEC, name="v")
    digests = {Manifest(specs).digest for specs in ((), (SPEC,), (SPEC, other), (other, SPEC))}
    assert len(digests) == 4
    assert Manifest((replace(SPEC),)).digest == Manifest((SPEC,)).digest


# ---- initial weights ----


def philox(seed: int, stream: int, count: int) -> list[int]:
    """Return Philox4x64-10 words, from the paper; the counter of the first block is 1."""
    mask, words = 2**64 - 1, []
    for block in range(1, count // 4 + 2):
        c, k0, k1 = [block, 0, 0, 0], seed, stream
        for _ in range(10):
            a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [b >> 64 ^ c[1] ^ k0, b & mask, a >> 64 ^ c[3] ^ k1, a & mask]
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
        words += c
    return words[:count]


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 1, 2**63 + 1, 2**64 - 1])
def test_initial_weights_can_be_written_anew_from_its_definition(seed: int) -> None:
    manifest = Manifest((TensorSpec("f", (2,)), TensorSpec("u", (3, 2), initial=Uniform(0.3))))
    _, drawn = initial_weights(manifest, seed)
    units = [((word >> 40) - 2**23) / 2**23 for word in philox(seed, 1, 6)]
    expected = np.array(units, np.float32) * np.float32(0.3)
    assert drawn.tobytes() == expected.reshape(3, 2).tobytes()


def test_initial_weights_are_what_they_always_were() -> None:
    digest = weights_digest(initial_weights(MODEL, 42)).hex()
    assert digest == "1669a6e0067d909335fbcc78165e22186d5cd3a4ff697057057b49950fe46c63"


def test_initial_weights_are_uniform_up_to_the_limit() -> None:
    manifest = Manifest((TensorSpec("w", (200_000,), initial=Uniform(0.5)),))
    (w,) = initial_weights(manifest, 7)
    assert w.min() >= -0.5
    assert w.max() < 0.5
    assert max(-w.min(), w.max()) > 0.4999
    assert abs(w.mean()) < 0.003
    assert w.var() == pytest.approx(0.5**2 / 3, rel=0.01)
    counts, _ = np.histogram(w, bins=20, range=(-0.5, 0.5))
    assert np.abs(counts - 10_000).max() < 500


def test_initial_weights_fill_constants_exactly() -> None:
    weights = initial_weights(MODEL, 1)
    assert (weights[3] == 1).all()
    assert not weights[1].any()


def test_every_tensor_and_every_seed_has_its_own_stream() -> None:
    specs = tuple(TensorSpec(f"w{i}", (64,), initial=Uniform(1.0)) for i in range(5))
    drawn = [w for seed in range(5) for w in initial_weights(Manifest(specs), seed)]
    assert len(set(bits(drawn))) == 25
    correlation = np.corrcoef(np.stack(drawn)) - np.eye(25)
    assert np.abs(correlation).max() < 0.6


# ---- low rank and clusters ----


def test_lowrank_finds_a_low_rank_exactly_and_the_best_of_a_higher_one() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    factors = rng.standard_normal((60, 3)), rng.standard_normal((3, 40))
    x = (factors[0] @ factors[1]).astype(np.float32).reshape(6, 10, 40)
    codec = parse_codec("lowrank(3)")
    data = codec.encode([x])
    assert len(data) == 1 + 4 * 3 * (60 + 40)
    np.testing.assert_allclose(codec.decode(data, [x.shape])[0], x, atol=1e-4)
    best = np.linalg.svd(x.reshape(60, 40), compute_uv=False)
    (y,) = parse_codec("lowrank(1)").decode(parse_codec("lowrank(1)").encode([x]), [x.shape])
    assert np.linalg.norm(x - y) <= 1.05 * np.linalg.norm(best[1:])


def test_lowrank_leaves_alone_what_would_not_shrink() -> None:
    codec, x = parse_codec("lowrank(4)"), np.linspace(-1, 1, 56, dtype=np.float32)
    for shape in [(56,), (7, 8), (56, 1), (4, 14)]:
        y = codec.decode(codec.encode([x.reshape(shape)]), [shape])
        assert bits(y) == bits([x])


def test_kmeans_finds_the_clusters_that_are_there() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    centres = np.array([-0.5, -0.1, 0.02, 0.4], np.float32)
    x = centres[rng.integers(0, 4, (50, 40))]
    (y,) = parse_codec("kmeans(2)").decode(parse_codec("kmeans(2)").encode([x]), [x.shape])
    np.testing.assert_allclose(y, x, atol=1e-6)


def test_kmeans_errs_less_than_uniform_steps_on_a_normal_distribution() -> None:
    x = np.random.Generator(np.random.PCG64(2)).standard_normal((300, 300)).astype(np.float32)
    errors = []
    for text in ("kmeans(3)", "quantize(3)"):
        (y,) = parse_codec(text).decode(parse_codec(text).encode([x]), [x.shape])
        errors.append(float(np.mean(np.square(x - y))))
    assert errors[0] == pytest.approx(0.0345, rel=0.03), "Lloyd-Max on a normal (Max 1960)"
    assert errors[0] < 0.5 * errors[1]


# ---- the classics ----


def test_deadzone_rounds_towards_zero_and_cuts_off() -> None:
    x = np.tile(np.array([0.6, 0.7, -0.6, -0.7, 1.6, 1.7], np.float32), 50)
    x /= np.sqrt(np.mean(np.square(x)))
    for step in (0.1, 1.0, 0.01):
        values, side = DeadZone(step).encode(x)
        assert struct.unpack("<f", side)[0] == pytest.approx(step)
        levels = np.minimum(np.floor(np.abs(x) / step + 1 / 3), 127)
        assert (values.astype(int) - 127 == np.copysign(levels, x)).all()


@pytest.mark.parametrize("text", ["qsgd(1)", "eden"])
def test_unbiased_codecs_are(text: str) -> None:
    codec, rng = parse_codec(text), np.random.Generator(np.random.PCG64(3))
    x = rng.standard_normal(512).astype(np.float32)
    mean, runs = np.zeros(512), 600
    for run in range(runs):
        context = Context(Key.root(run))
        (y,) = codec.decode(codec.encode([x], context), [x.shape], context)
        mean += y / runs
    overlap = float(np.vdot(mean, x) / np.vdot(x, x))
    assert overlap == pytest.approx(1, abs=0.05)
    noise = {"qsgd(1)": math.sqrt(512), "eden": 1.0}[text]  # of one run, relative to x
    assert np.linalg.norm(mean - x) < 2 * noise * np.linalg.norm(x) / math.sqrt(runs)
