"""The sketch codec, the importance behind it, and the mean that both sides make of a round."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherfed.compression import importance, sampler
from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.context import Context
from featherfed.compression.errors import CodecError, OutOfRangeError, WireError
from featherfed.compression.exchange.average import Average, WeightedUpdate, average
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, weights_digest
from featherfed.compression.exchange.round import RoundContext, RoundStart, round_key, statistics_of
from featherfed.compression.exchange.update import (
    apply_update,
    changed_weights,
    decode_update,
    encode_update,
    max_payload,
    receive_update,
    sketched_shapes,
)
from featherfed.compression.hadamard import block_scales, padded, rotate, rotate_back
from featherfed.compression.importance import (
    Allocation,
    ReportForm,
    grid_of,
    importance_weights,
    measure_importance,
    merge_reports,
)
from featherfed.compression.key import Key
from featherfed.compression.registry import parse_codec
from featherfed.compression.sketch import Sketch
from featherfed.compression.sparse import SparseTensor, add_scaled, dense, sparse_sum

MODEL = Manifest(
    (
        TensorSpec("kernel", (300, 40), prunable=True),
        TensorSpec("bias", (40,)),
        TensorSpec("mean", (40,), Role.STATISTIC),
        TensorSpec("variance", (40,), Role.NONNEGATIVE),
        TensorSpec("scale", ()),
        TensorSpec("nothing", (0,)),
    )
)
SHAPES = sketched_shapes(MODEL)
TEXTS = ["sketch(0.05)", "sketch(0.05, 1, profile)", "sketch(0.2, 2)", "sketch(0.4, 4, profile)",
         "sketch(0.1, 1, bounded)", "sketch(0.06, 0.1875, bounded)",
         "sketch(0.06, 0.1875, coarse)", "sketch(0.1, 1, levels)"]  # fmt: skip
KEY = round_key(3, 1)


def some_update(seed: int = 0) -> list[Array]:
    """Rows and columns of very different size, as in trained kernels."""
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.normal(size=(300, 1)))
    update = [rng.normal(size=s.shape).astype(np.float32) * np.float32(0.01) for s in MODEL]
    update[0] = (update[0] * rows).astype(np.float32)
    return update


def the_round(slots: int = 5, seed: int = 3, known: Allocation | None = None) -> RoundContext:
    return RoundContext(round_key(seed, 1), slots, [None] * len(MODEL), known)


# ---- rotation and shared randomness ----


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4096, 9999])
def test_rotation_keeps_lengths_and_can_be_undone(size: int) -> None:
    x = np.random.default_rng(size).normal(size=size).astype(np.float32)
    key = Key.root(1).child("x")
    z = rotate(x, key)
    assert z.shape == (padded(size),)
    assert np.vdot(z, z) == pytest.approx(np.vdot(x, x), rel=1e-5)
    assert rotate_back(z, key)[:size] * block_scales(size)[:size] == pytest.approx(x, abs=1e-5)


def test_rotating_whole_numbers_back_is_exact() -> None:
    z = np.random.default_rng(0).integers(-15, 16, 8192).astype(np.float32)
    back = rotate_back(z, KEY)
    assert (back == np.rint(back)).all()


def test_a_key_gives_the_same_stream_for_ever() -> None:
    words = Key.root(2**63 + 1).child("round", 7).words(2)
    assert [hex(word) for word in words] == ["0x3900c294ae4314fe", "0xa29cfdb9b35243bd"]
    key = np.frombuffer(KEY.bits, "<u8").astype(np.uint64)
    assert (KEY.words(101) == np.random.Philox(key=key).random_raw(101)).all()
    assert Key.root(0).child("ab") != Key.root(0).child("a", "b")


def test_a_stream_is_the_same_in_pieces() -> None:
    pieces = list(KEY.blocks(10, 4))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert (np.concatenate(pieces) == KEY.words(10)).all()


# ---- which coordinates are sent ----


@pytest.mark.parametrize("density", [0.001, 0.03, 0.4, 1.0])
@pytest.mark.parametrize("block", [64, 1000, 16384])
def test_each_stratum_sends_the_coordinate_at_its_point(
    monkeypatch: pytest.MonkeyPatch, density: float, block: int
) -> None:
    """Whatever is drawn at once, and by whichever table or search the coordinates are found."""
    monkeypatch.setattr(sampler, "_BLOCK", block)
    rng = np.random.default_rng(5)
    shapes = [(40, 60), (3,), (0,), (2, 3, 300, 9), (), (1024,)]
    entries = sum(grid_of(shape).entries for shape in shapes)
    known = Allocation(
        bytes(rng.integers(20, 32, len(shapes)).tolist()),
        bytes(rng.integers(0, 16, entries).tolist()),
    )
    context = Context(KEY, 2, 5, known)
    count = int(density * sum(math.prod(shape) for shape in shapes))
    drawn = sampler.Sampler(known, shapes)
    samples = list(drawn.draw(count, context))

    weights = []  # of all coordinates, one by one
    at = 0
    for shape, level in zip(shapes, known.levels, strict=True):
        grid = grid_of(shape)
        codes = np.frombuffer(known.profile, np.uint8)[at : at + grid.entries]
        at += grid.entries
        rows, columns = importance_weights(level, grid, codes)
        weights.append(np.outer(rows, np.ones(grid.columns, int) if columns is None else columns))
    ends = np.cumsum(np.concatenate([w.ravel() for w in weights])).tolist()
    widths = [ends[-1] // count + (i < ends[-1] % count) for i in range(count)]
    words = (KEY.child("points").words(count) >> np.uint64(32)).tolist()
    draws = [(word + 2 * (2**32 // 5)) % 2**32 for word in words]
    begins = np.cumsum([0, *widths]).tolist()
    points = [b + w * d // 2**32 for b, w, d in zip(begins, widths, draws, strict=False)]
    expected = np.searchsorted(ends, points, side="right")

    firsts = np.cumsum([0, *(w.size for w in weights)])
    got = np.concatenate([s.positions + firsts[s.tensor] for s in samples])
    assert (got == expected).all()
    assert [s.values.start for s in samples[1:]] == [s.values.stop for s in samples[:-1]]
    for sample in samples:
        assert drawn.widths(sample.values, count).tolist() == widths[sample.values]
    roots = np.sqrt(np.concatenate([w.ravel() for w in weights])[expected]).astype(np.float32)
    assert (np.concatenate([s.root for s in samples]) == roots).all()


def test_a_wide_stratum_is_scaled_without_overflow() -> None:
    draw = np.array([0, 1, 2**31 + 5, 2**32 - 1], np.uint64)
    for width in (1, 2**32 - 1, 2**32, 2**47 + 3, 2**61 + 12345):
        scaled = draw.copy()
        sampler._scale(scaled, width)
        assert scaled.tolist() == [width * d // 2**32 for d in draw.tolist()]


# ---- sparse tensors ----


@given(
    places=st.lists(st.integers(0, 11), max_size=40),
    seed=st.integers(0, 99),
    factor=st.floats(0, 2, width=32),
)
@settings(deadline=None)
def test_a_sparse_tensor_is_to_the_bit_what_it_is_with_its_zeros(
    places: list[int], seed: int, factor: float
) -> None:
    rng = np.random.default_rng(seed)
    positions = np.sort(np.array(places, np.int64))
    values = rng.normal(size=len(places)).astype(np.float32)
    values[rng.random(len(places)) < 0.3] = -0.0
    whole = np.zeros(12, np.float32)
    np.add.at(whole, positions, values)
    sparse = sparse_sum((3, 4), positions, values)
    assert sparse.positions.tolist() == sorted(set(places))
    assert sparse.dense().tobytes() == whole.tobytes()
    totals = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2)]
    totals[1][:] = totals[0]
    add_scaled(totals[0], np.float32(factor), sparse)
    add_scaled(totals[1], np.float32(factor), sparse.dense())
    assert totals[0].tobytes() == totals[1].tobytes()


def test_a_decoded_update_is_made_whole_when_it_is_read() -> None:
    (part,) = parts_of("sketch(0.05)", the_round(), [some_update()])
    mean = Average(MODEL, the_round(), 10)
    decoded = mean.add(part)
    context = the_round().for_slot(0)
    expected = decode_update(parse_codec(part.codec), MODEL, part.payload, context=context)
    assert len(decoded) == len(MODEL)
    for tensors in (list(decoded), [decoded[i] for i in range(len(MODEL))], [*decoded[:]]):
        assert weights_digest(tensors) == weights_digest(expected)


def test_the_weights_that_a_sketch_changes_are_checked_as_all_are() -> None:
    codec, context = parse_codec("sketch(0.05)"), the_round().for_slot(0)
    payload = encode_update(codec, MODEL, some_update(), context=context).payload
    update = receive_update(codec, MODEL, payload, context=context).tensors
    whole = [dense(tensor) for tensor in update]
    base = [np.full(spec.shape, 0.25, np.float32) for spec in MODEL]
    start = RoundStart(MODEL, base, [None] * len(MODEL))
    weights = apply_update(MODEL, base, whole)
    changed = changed_weights(start, update)
    for tensor, own, all_ in zip(update, changed, weights, strict=True):
        places = tensor.positions if isinstance(tensor, SparseTensor) else slice(None)
        assert (own.reshape(-1) == all_.reshape(-1)[places]).all()
    most = max(float(np.abs(w).max(initial=0)) for w in weights)
    changed_weights(start, update, limit=most)
    for limit in (0.2, 0.99 * most):
        with pytest.raises(OutOfRangeError) as error:
            apply_update(MODEL, base, whole, limit=limit)
        with pytest.raises(OutOfRangeError, match=re.escape(str(error.value))):
            changed_weights(start, update, limit=limit)


# ---- importance ----


def test_only_large_matrices_have_a_profile() -> None:
    assert grid_of((300, 40)).profiled
    assert not grid_of((40,)).profiled
    assert not grid_of((12000,)).profiled, "what a mask leaves"
    assert not grid_of((20, 40)).profiled
    assert not grid_of((2, 600)).profiled


def test_reports_of_all_slots_make_the_allocation_whole() -> None:
    own = measure_importance([some_update()[i] for i in (0, 1, 4, 5)])
    reports = reports_of([own] * 5, ReportForm(4, bounded=False))
    assert merge_reports(None, reports, SHAPES) == own, "as older versions merge"
    partial = merge_reports(None, reports[:2], SHAPES)
    assert partial is not None
    assert partial.profile[2] == importance.NEUTRAL
    assert merge_reports(own, [], SHAPES) == own


def reports_of(
    owns: list[Allocation], form: importance.ReportForm = importance.FINE
) -> list[importance.Report]:
    slots = len(owns)
    return [
        importance.decode_report(
            importance.encode_report(own, slot, slots, form), SHAPES, slot, slots, form
        )
        for slot, own in enumerate(owns)
    ]


CODES = st.binary(min_size=340, max_size=340).map(lambda data: bytes(b & 15 for b in data))
LEVELS = st.binary(min_size=4, max_size=4).map(lambda data: bytes(b & 31 for b in data))
ALLOCATIONS = st.builds(Allocation, LEVELS, CODES)


def chances(allocation: Allocation) -> Array:
    """Return how often each coordinate of the kernel is sent, relative to the mean of all."""
    total, kernel, at = 0.0, np.zeros(0), 0
    profile = np.frombuffer(allocation.profile, np.uint8)
    for shape, level in zip(SHAPES, allocation.levels, strict=True):
        grid = grid_of(shape)
        codes = profile[at : at + grid.entries]
        at += grid.entries
        rows, columns = importance.importance_weights(level, grid, codes)
        columns = np.ones(grid.columns) if columns is None else columns
        weights = np.outer(rows, columns)
        total += weights.sum()
        kernel = weights if weights.shape == (300, 40) else kernel
    return kernel / (total / sum(int(np.prod(s)) for s in SHAPES))


@given(honest=st.lists(ALLOCATIONS, min_size=2, max_size=6), lie=ALLOCATIONS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_one_report_moves_no_level_beyond_what_the_others_say(
    honest: list[Allocation], lie: Allocation, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(honest)))
    reports = reports_of([*honest[:place], lie, *honest[place:]])
    ordered = np.sort([np.frombuffer(own.levels, np.uint8) for own in honest], axis=0)
    merged = importance._median(
        np.stack([np.frombuffer(r.levels, np.uint8).astype(np.int64) for r in reports])
    )
    assert (ordered[0] <= merged).all()
    assert (merged <= ordered[-1]).all()


@given(st.lists(ALLOCATIONS, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_whatever_is_reported_no_coordinate_starves(owns: list[Allocation]) -> None:
    merged = merge_reports(None, reports_of(owns), SHAPES)
    assert merged is not None
    merged.check(SHAPES)
    assert chances(merged).min() > 1 / 4 / 2**0.5 / 2 / 2 / 16 * 0.9


def test_a_lie_of_one_in_five_costs_the_others_coordinates_little() -> None:
    own = measure_importance([some_update()[i] for i in (0, 1, 4, 5)])
    codes = np.frombuffer(own.profile, np.uint8)
    lie = Allocation(bytes([0, 31, 31, 0]), np.where(codes >= 5, 0, 15).astype(np.uint8).tobytes())

    def loss(bounded: bool) -> float:
        honest, lied = (
            merge_reports(None, reports_of([first, *[own] * 4], ReportForm(4, bounded)), SHAPES)
            for first in (own, lie)
        )
        assert honest is not None
        assert lied is not None
        theirs = np.ones((300, 40), bool)
        theirs[::5] = False
        theirs[:, ::5] = False  # the 300th code is the first column's: slot 0 has it
        return float((chances(honest) / chances(lied))[theirs].max())

    assert loss(bounded=True) < 4
    assert loss(bounded=False) > 20, "as older versions merge"


@pytest.mark.parametrize("bits", [0, 2])
def test_a_coarser_report_tells_about_the_same_in_fewer_bytes(bits: int) -> None:
    own = measure_importance([some_update()[i] for i in (0, 1, 4, 5)])
    form = ReportForm(bits)
    merged = merge_reports(None, reports_of([own] * 5, form), SHAPES)
    fine = merge_reports(None, reports_of([own] * 5), SHAPES)
    assert merged is not None
    assert fine is not None
    assert merged.levels == fine.levels
    codes = [np.frombuffer(it.profile, np.uint8).astype(int) for it in (merged, fine)]
    if bits:
        assert np.abs(codes[0] - codes[1]).max() <= 1, "a factor of the square root of 2"
    else:
        assert (codes[0] == importance.NEUTRAL).all()
    size = importance.report_size(SHAPES, 0, 5, form)
    assert size == len(importance.encode_report(own, 0, 5, form)) == 4 + 68 * bits // 8


@pytest.mark.parametrize("bits", [0, 2, 4])
def test_a_report_with_another_meaning_than_its_bytes_is_refused(bits: int) -> None:
    own = measure_importance([some_update()[i] for i in (0, 1, 4, 5)])
    form = ReportForm(bits)
    good = importance.encode_report(own, 0, 7, form)
    bad = [bytes([32]) + good[1:]]
    if bits:  # slot 0 has 49 codes: 4 bits or 6 are left of the last byte
        bad.append(good[:-1] + bytes([good[-1] | 0x80]))
    for data in bad:
        with pytest.raises(WireError, match="out of range"):
            importance.decode_report(data, SHAPES, 0, 7, form)


def test_levels_alone_leave_the_profile_as_it_was() -> None:
    own = measure_importance([some_update()[i] for i in (0, 1, 4, 5)])
    before = merge_reports(None, reports_of([own] * 5), SHAPES)
    after = merge_reports(before, reports_of([own] * 5, ReportForm(0)), SHAPES)
    assert after == before


def test_honest_reports_within_the_bounds_merge_to_themselves() -> None:
    own = measure_importance([some_update()[i] for i in (0, 1, 4, 5)])
    merged = merge_reports(None, reports_of([own] * 5), SHAPES)
    assert merged is not None
    codes = np.clip(np.frombuffer(own.profile, np.uint8), 3, 9).astype(np.uint8)
    assert merged.profile == codes.tobytes()
    assert merged.levels == b"\x1f\x1a\x1c\x1a", "the least are raised, the others as reported"
    assert own.levels == b"\x1f\x19\x1c\x00"


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e15])
def test_importance_of_any_scale_is_finite(scale: float) -> None:
    tensors = [(some_update()[0] * np.float32(scale)).astype(np.float32)]
    measure_importance(tensors).check([t.shape for t in tensors])


def test_an_allocation_that_does_not_fit_is_refused() -> None:
    fitting = importance.equal_importance(SHAPES)
    fitting.check(SHAPES)
    for wrong in (
        Allocation(fitting.levels[1:], fitting.profile),
        Allocation(fitting.levels, fitting.profile[1:]),
        Allocation(b"\xff" * len(fitting.levels), fitting.profile),
        Allocation(fitting.levels, b"\x10" * len(fitting.profile)),
    ):
        with pytest.raises(WireError, match="does not fit"):
            wrong.check(SHAPES)


# ---- the codec ----


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_codec_are_the_same(text: str) -> None:
    assert str(parse_codec(text)) == text
    assert parse_codec(str(parse_codec(text))) == parse_codec(text)


@pytest.mark.parametrize(
    "text",
    ["sketch", "sketch(0)", "sketch(2)", "sketch(0.1, 3)", "sketch(0.1, 1, x)",
     "sketch(0.1) | zstd", "topk(0.1) | sketch(0.1)", "sketch('a')"],
)  # fmt: skip
def test_a_wrong_sketch_is_a_codec_error(text: str) -> None:
    with pytest.raises(CodecError):
        parse_codec(text)


def mean_of_many(codec: Codec, x: list[Array], known: Allocation | None, runs: int) -> list[Array]:
    total = [np.zeros(t.shape) for t in x]
    for run in range(runs):
        context = Context(round_key(run, 1), run % 5, 5, known)
        decoded = codec.decode(codec.encode(x, context), [t.shape for t in x], context)
        total = [t + d for t, d in zip(total, decoded, strict=True)]
    return [(t / runs).astype(np.float32) for t in total]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_sketch_is_unbiased(text: str, known: bool) -> None:
    x = [some_update()[i] for i in (0, 1, 4, 5)]
    mean = mean_of_many(parse_codec(text), x, measure_importance(x) if known else None, 600)
    flat, got = (np.concatenate([t.ravel() for t in ts]) for ts in (x, mean))
    assert np.vdot(got, flat) / np.vdot(flat, flat) == pytest.approx(1, abs=0.05)
    assert np.corrcoef(got, flat)[0, 1] > 0.8


def test_knowing_importance_lowers_the_weighted_noise() -> None:
    x = [some_update()[i] for i in (0, 1, 4, 5)]
    rows = np.square(x[0]).mean(axis=1, keepdims=True)

    def noise(known: Allocation | None) -> float:
        codec, losses = Sketch(0.02), []
        for run in range(60):
            context = Context(round_key(run, 1), 0, 5, known)
            decoded = codec.decode(codec.encode(x, context), [t.shape for t in x], context)
            losses.append(float((rows * np.square(decoded[0] - x[0])).mean()))
        return float(np.mean(losses))

    assert noise(measure_importance(x)) < 0.5 * noise(None)


def test_clients_of_a_round_send_different_coordinates() -> None:
    shape = (160, 128)  # strata of exactly ten coordinates
    x = [np.ones(shape, np.float32)]
    seen = np.zeros(shape, int)
    for slot in range(5):
        context = Context(KEY, slot, 5)
        (y,) = Sketch(0.1).decode(Sketch(0.1).encode(x, context), [shape], context)
        seen += y != 0
    assert seen.max() == 1


@pytest.mark.parametrize("text", TEXTS)
def test_an_update_has_the_bytes_that_its_density_says(text: str) -> None:
    encoded = encode_update(parse_codec(text), MODEL, some_update(), context=Context(KEY, 1, 5))
    density = parse_codec(text).density  # type: ignore[attr-defined]
    assert len(encoded.payload) <= max_payload(parse_codec(text), MODEL)
    reports = parse_codec(text).side != "bare"  # type: ignore[attr-defined]
    assert abs(len(encoded.payload) - 12041 * density / 8) < 120 + 45 * reports
    assert encoded.residual is None


@pytest.mark.parametrize("text", TEXTS)
def test_a_payload_of_another_slot_or_round_is_refused(text: str) -> None:
    codec, context = parse_codec(text), Context(KEY, 1, 5)
    payload = encode_update(codec, MODEL, some_update(), context=context).payload
    for other in (
        replace(context, slot=2),
        replace(context, key=round_key(3, 2)),
        replace(context, allocation=importance.equal_importance(SHAPES)),
    ):
        with pytest.raises(WireError, match="checksum"):
            decode_update(codec, MODEL, payload, context=other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e19])
def test_what_is_not_finite_cannot_be_sketched(bad: float) -> None:
    update = some_update()
    update[0][0, 0] = bad
    with pytest.raises(CodecError, match="NaN"):
        encode_update(parse_codec(TEXTS[0]), MODEL, update)


@pytest.mark.parametrize("text", TEXTS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_give_wire_errors_or_finite_tensors(text: str, data: st.DataObject) -> None:
    codec, context = parse_codec(text), Context(KEY, 1, 5)
    honest = codec.encode([some_update()[i] for i in (0, 1, 4, 5)], context)
    position = data.draw(st.integers(0, len(honest) - 1))
    noise = data.draw(st.binary(max_size=80))
    hostile = honest[:position] + noise + honest[position + len(noise) :]
    try:
        decoded = codec.decode(hostile, SHAPES, context)
    except WireError:
        return
    assert all(np.isfinite(tensor).all() for tensor in decoded)


# ---- the mean ----


def parts_of(text: str, round_: RoundContext, updates: list[list[Array]]) -> list[WeightedUpdate]:
    codec = parse_codec(text)
    return [
        WeightedUpdate(slot, 10 * (slot + 1), text, encode_update(
            codec, MODEL, update, context=round_.for_slot(slot)
        ).payload)
        for slot, update in enumerate(updates)
    ]  # fmt: skip


def test_statistics_that_are_shared_out_average_over_those_who_sent_them() -> None:
    round_ = the_round()
    update = [np.full(s.shape, np.float32(0.5)) for s in MODEL]
    parts = parts_of("sketch(0.005)", round_, [update] * 5)
    masks = []
    for part in parts:
        context = round_.for_slot(part.slot)
        received = receive_update(parse_codec(part.codec), MODEL, part.payload, context=context)
        masks.append(received.covered[2])
    assert masks[0] is not None
    assert 0 < masks[0].sum() < 40
    for present in (parts, parts[1:], parts[:1]):
        mean = average(MODEL, round_, present).mean()
        sent = np.zeros(40, bool)
        for part in present:
            sent |= masks[part.slot]
        assert mean[2] == pytest.approx(np.where(sent, 0.5, 0))


def test_statistics_travel_as_values_not_as_changes() -> None:
    """A variance that falls from 1 to 0.01 would drown in the rounding of the fall."""
    base = [np.zeros(s.shape, np.float32) for s in MODEL]
    base[3] += 1
    statistics = statistics_of(MODEL, base)
    assert statistics.tolist() == [0.0] * 40 + [1.0] * 40
    context = replace(the_round(slots=1), statistics=statistics).for_slot(0)
    update = [np.zeros(s.shape, np.float32) for s in MODEL]
    wanted = np.geomspace(0.001, 10, 40, dtype=np.float32)
    update[2], update[3] = -wanted, wanted - base[3]
    codec = parse_codec("sketch(0.05)")
    payload = encode_update(codec, MODEL, update, context=context).payload
    decoded = decode_update(codec, MODEL, payload, context=context)
    assert decoded[2] == pytest.approx(-wanted, rel=0.125)
    assert base[3] + decoded[3] == pytest.approx(wanted, rel=0.126)


def test_statistics_that_are_held_cost_nothing_and_stay() -> None:
    round_ = replace(the_round(), statistics=np.ones(80, np.float32))
    codec = parse_codec("sketch(0.05, 1, bare, held)")
    parts = parts_of(str(codec), round_, [some_update(seed) for seed in range(5)])
    with_them = parts_of("sketch(0.05)", round_, [some_update()])[0]
    assert len(parts[0].payload) == len(with_them.payload) - 80 // 5 - 3
    mean = average(MODEL, round_, parts).mean()
    assert mean[0].any()
    assert not mean[2].any()
    assert not mean[3].any()
    others = parts_of("float32", round_, [some_update(5)] * 2)
    assert average(MODEL, round_, [*parts[:3], others[1]]).mean()[2] == pytest.approx(
        some_update(5)[2]
    ), "the mean is over those who sent them"


def test_a_mixed_fleet_averages() -> None:
    round_ = the_round(slots=3)
    updates = [some_update(seed) for seed in range(3)]
    exact = parts_of("float32", round_, updates)
    mixed = [exact[0], *parts_of("sketch(1.0, 4)", round_, updates)[1:]]
    wanted, got = average(MODEL, round_, exact).mean(), average(MODEL, round_, mixed).mean()
    overlap = np.vdot(wanted[0], got[0]) / np.vdot(wanted[0], wanted[0])
    assert overlap == pytest.approx(1, abs=0.2)


def test_the_mean_tells_the_next_rounds_importance() -> None:
    round_ = the_round()
    updates = [some_update(7)] * 5
    reporting = average(MODEL, round_, parts_of("sketch(0.05, 1, profile)", round_, updates))
    known, own = reporting.allocation(), measure_importance([updates[0][i] for i in (0, 1, 4, 5)])
    assert known == own
    bounded = average(MODEL, round_, parts_of("sketch(0.05, 1, bounded)", round_, updates))
    assert bounded.allocation() == merge_reports(None, reports_of([own] * 5), SHAPES)
    bare = average(
        MODEL, the_round(known=known), parts_of(TEXTS[0], the_round(known=known), updates)
    )
    assert bare.allocation() == known


def test_under_a_mask_only_what_is_kept_is_sketched() -> None:
    known = measure_importance([some_update()[i] for i in (0, 1, 4, 5)])
    mask = np.random.default_rng(0).random((300, 40)) < 0.2
    masks = [mask, *[None] * 5]
    codec, context = parse_codec("sketch(0.5, 1, profile)"), Context(KEY, 0, 5, known)
    payload = encode_update(codec, MODEL, some_update(), masks=masks, context=context).payload
    decoded = decode_update(codec, MODEL, payload, masks=masks, context=context)
    assert not decoded[0][~mask].any()
    assert decoded[0][mask].any()
    received = receive_update(codec, MODEL, payload, masks=masks, context=context)
    assert received.report is None
