"""Any bytes give a value or a WireError, nothing else, within bounded time and memory.

Each MUST of docs/wire-format.md is broken here once, by payloads whose checksum is right.
"""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from backports import zstd
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.codec_texts import CODECS

from featherfed.compression.arrays import Array
from featherfed.compression.buffer import Reader, varint
from featherfed.compression.errors import CodecError, NonFiniteError, WireError
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec
from featherfed.compression.exchange.update import decode_update, encode_update, max_payload
from featherfed.compression.registry import STAGES, parse_codec
from featherfed.compression.stages.range import AVAILABLE, Range
from featherfed.compression.stages.zstd import Zstd
from featherfed.compression.wire import MAGIC, VERSION, seal, unseal

CONTEXT = b"both sides know this"
MODEL = Manifest(
    (
        TensorSpec("kernel", (32, 40), prunable=True),
        TensorSpec("bias", (5,)),
        TensorSpec("variance", (5,), Role.NONNEGATIVE),
    )
)
KERNEL = 32 * 40
NO_FINE = Manifest(MODEL.specs[:1])


def some_update() -> list[Array]:
    return [
        (np.arange(spec.size, dtype=np.float32) % 17 / 16 - 0.5).reshape(spec.shape)
        for spec in MODEL
    ]


def context(text: str, manifest: Manifest = MODEL) -> bytes:
    return str(parse_codec(text)).encode() + manifest.digest


def enclose(text: str, section: bytes, manifest: Manifest = NO_FINE) -> bytes:
    """Return a payload whose envelope is right, with `section` for the tensors that take `text`."""
    return seal(varint(len(section)) + section, context(text, manifest))


def decode(text: str, section: bytes) -> list[Array]:
    return decode_update(parse_codec(text), NO_FINE, enclose(text, section))


def side(content: bytes) -> bytes:
    return varint(len(content)) + content


def frame(content: bytes, level: int = 3, **options: int) -> bytes:
    settings = {"content_size_flag": 0, "compression_level": level, **options}
    by_number = {zstd.CompressionParameter[name]: value for name, value in settings.items()}
    return zstd.compress(content, options=by_number)


# ---- varints ----


@given(st.integers(0, 2**35 - 1))
@settings(deadline=None)
@example(0)
@example(127)
@example(128)
@example(2**35 - 1)
def test_a_varint_comes_back(value: int) -> None:
    reader = Reader(varint(value))
    assert reader.varint() == value
    reader.finish()


@pytest.mark.parametrize(("value", "data"), [(0, b"\0"), (127, b"\x7f"), (300, b"\xac\x02")])
def test_a_varint_is_leb128(value: int, data: bytes) -> None:
    assert varint(value) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated: 1 bytes announced, 0 left"),
        (b"\x80", "truncated"),
        (b"\x80\x00", "shortest form"),
        (b"\xff\x80\x00", "shortest form"),
        (b"\xff" * 5, "longer than 5 bytes"),
        (b"\x80" * 10**6 + b"\1", "longer than 5 bytes"),
    ],
)
def test_a_bad_varint_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        Reader(data).varint()


# ---- the envelope ----


@given(body=st.binary(max_size=400), context=st.binary(max_size=60))
@settings(deadline=None)
def test_an_envelope_comes_back(body: bytes, context: bytes) -> None:
    assert unseal(seal(body, context), context) == body


def test_an_envelope_is_what_the_documentation_says() -> None:
    head = b"ff\x01" + b"\x03" + b"abc"
    checksum = zlib.crc32(CONTEXT + head)
    assert seal(b"abc", CONTEXT) == head + struct.pack("<I", checksum)


def with_checksum(head: bytes) -> bytes:
    return head + struct.pack("<I", zlib.crc32(CONTEXT + head))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"fg\1\3abc", "wrong magic"),
        (b"FF\1\3abc", "wrong magic"),
        (b"ff\0\3abc", "version 0 is not supported"),
        (b"ff\2\3abc", "version 2 is not supported; this is 1"),
        (b"ff\1\4abc", "body of 4 bytes announced, 7 bytes left"),
        (b"ff\1\2abc", "body of 2 bytes announced, 7 bytes left"),
        (b"ff\1\xff\xff\xff\xff\x7fabc", "body of 34359738367 bytes announced"),
        (b"ff\1\x83\0abc", "shortest form"),
        (b"ff\1\xff\xff\xff\xff\xff\1abc", "longer than 5 bytes"),
    ],
)
def test_an_envelope_that_breaks_a_rule_is_refused(head: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unseal(with_checksum(head), CONTEXT)


def test_an_envelope_cut_short_anywhere_is_refused() -> None:
    payload = seal(b"abcdefgh", CONTEXT)
    for length in range(len(payload)):
        with pytest.raises(WireError, match=r"truncated|announced"):
            unseal(payload[:length], CONTEXT)


def test_bytes_after_an_envelope_are_refused() -> None:
    with pytest.raises(WireError, match="announced"):
        unseal(seal(b"abc", CONTEXT) + b"\0", CONTEXT)


def test_every_flipped_bit_of_an_envelope_is_noticed() -> None:
    payload = seal(b"abcdefgh", CONTEXT)
    for position in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(WireError):
            unseal(bytes(damaged), CONTEXT)


def test_an_envelope_for_another_context_is_refused() -> None:
    with pytest.raises(WireError, match=r"checksum mismatch.*another codec or model"):
        unseal(seal(b"abc", CONTEXT), CONTEXT + b"!")


@pytest.mark.parametrize("text", CODECS)
def test_a_payload_of_another_codec_or_model_is_refused(text: str) -> None:
    codec = parse_codec(text)
    payload = encode_update(codec, MODEL, some_update()).payload
    renamed = Manifest((*MODEL.specs[:2], TensorSpec("variance", (5,), Role.STATISTIC)))
    with pytest.raises(WireError, match="checksum mismatch"):
        decode_update(codec, renamed, payload)
    with pytest.raises(WireError, match="checksum mismatch"):
        decode_update(parse_codec("quantize(7)"), MODEL, payload)


# ---- sections: the lengths must add up ----


@pytest.mark.parametrize("text", CODECS)
def test_a_payload_with_any_section_cut_short_is_refused(text: str) -> None:
    codec = parse_codec(text)
    payload = encode_update(codec, MODEL, some_update()).payload
    body = unseal(payload, context(text))
    for length in range(0, len(body), max(1, len(body) // 60)):
        with pytest.raises(WireError):
            decode_update(codec, MODEL, seal(body[:length], context(text)))


@pytest.mark.parametrize("text", CODECS)
def test_a_payload_with_bytes_left_over_is_refused(text: str) -> None:
    codec = parse_codec(text)
    body = bytes(unseal(encode_update(codec, MODEL, some_update()).payload, context(text)))
    with pytest.raises(WireError, match=r"1 bytes too many|bytes come after|multiple times"):
        decode_update(codec, MODEL, seal(body + b"\0", context(text)))


@pytest.mark.parametrize("text", CODECS)
def test_a_coarse_section_with_bytes_left_over_is_refused(text: str) -> None:
    codec = parse_codec(text)
    reader = Reader(unseal(encode_update(codec, MODEL, some_update()).payload, context(text)))
    section = reader.take(reader.varint()) + b"\0"
    body = side(section) + reader.take(reader.remaining)
    with pytest.raises(WireError, match=r"1 bytes too many|bytes come after|words are"):
        decode_update(codec, MODEL, seal(body, context(text)))


@pytest.mark.parametrize("announced", [10**6, 2**35 - 1])
def test_a_section_longer_than_the_payload_is_refused(announced: int) -> None:
    payload = seal(varint(announced) + b"abc", context("float32"))
    with pytest.raises(WireError, match=f"truncated: {announced} bytes announced, 3 left"):
        decode_update(parse_codec("float32"), MODEL, payload)


# ---- hostile content under a right checksum ----

ZEROS = bytes(4 * KERNEL)
CODES = bytes(KERNEL)
BITS = bytes(KERNEL // 8)


def f32(value: float) -> bytes:
    return struct.pack("<f", value)


def quantizer(step: float, zero: int) -> bytes:
    return struct.pack("<fH", step, zero)


def gaps(*values: int) -> bytes:
    return b"".join(varint(value) for value in values)


TOP = "topk(0.005)"  # 7 of 1280 values
SEVEN = bytes(4 * 7)

HOSTILE = [
    ("float32", side(b"\0") + ZEROS, "float32: 1 bytes of side information are too many"),
    ("float32", varint(2**34) + ZEROS, "float32: .* too many"),
    ("float32", side(b"") + ZEROS[:-1], "truncated"),
    ("float16", side(b"\0\0\0") + ZEROS[::2], "float16: 3 bytes of side information"),
    ("float16", side(b"\0") + ZEROS[::2], "needs 2 bytes of exponent, got 1"),
    ("float16", side(struct.pack("<h", 201)) + ZEROS[::2], "exponent 201 is outside"),
    ("float16", side(struct.pack("<h", -201)) + ZEROS[::2], "exponent -201 is outside"),
    ("float16", side(struct.pack("<h", -32768)) + ZEROS[::2], "outside"),
    ("quantize(8)", side(quantizer(1, 0) * 2) + CODES, "quantize: 12 bytes of side information"),
    ("quantize(8)", side(b"\0" * 5) + CODES, "needs 6 side bytes, got 5"),
    ("quantize(8)", side(quantizer(np.nan, 0)) + CODES, "step or zero point"),
    ("quantize(8)", side(quantizer(np.inf, 0)) + CODES, "step or zero point"),
    ("quantize(8)", side(quantizer(-1, 0)) + CODES, "step or zero point"),
    ("quantize(8)", side(quantizer(1, 256)) + CODES, "step or zero point"),
    ("quantize(3)", side(quantizer(1, 8)) + CODES[: KERNEL * 3 // 8], "step or zero point"),
    ("quantize(8, channel)", side(quantizer(1, 0)) + CODES, "needs 240 side bytes, got 6"),
    (TOP, side(gaps(*[0] * 6)) + SEVEN, "needs 7 positions, got 6"),
    (TOP, side(gaps(*[0] * 8)) + SEVEN, "needs 7 positions, got 8"),
    (TOP, side(b"") + SEVEN, "needs 7 positions, got 0"),
    (TOP, side(gaps(*[0] * 7) + b"\x80") + SEVEN, "needs 7 positions"),
    (TOP, side(gaps(*[0] * 6) + b"\x80") + SEVEN, "needs 7 positions, got 6"),
    (TOP, side(gaps(*[0] * 36)) + SEVEN, "topk: 36 bytes of side information"),
    (TOP, side(gaps(*[0] * 6, 1274)) + SEVEN, "position 1280 is outside a tensor of 1280"),
    (TOP, side(gaps(1280, *[0] * 6)) + SEVEN, "outside"),
    (TOP, side(gaps(*[2**35 - 1] * 7)) + SEVEN, "outside"),
    (TOP, side(gaps(*[0] * 6) + b"\x80\0") + SEVEN, "shortest form"),
    (TOP, side(gaps(*[0] * 6) + b"\xff" * 5 + b"\1") + SEVEN, "longer than 5 bytes"),
    ("float8", side(b"\0") + CODES, "needs 2 bytes of exponent"),
    ("deadzone(0.2)", side(b"\0" * 3) + CODES, "needs 4 side bytes, got 3"),
    ("deadzone(0.2)", side(f32(np.nan)) + CODES, "deadzone step is out of range"),
    ("deadzone(0.2)", side(f32(-1)) + CODES, "deadzone step is out of range"),
    ("sign", side(b"") + BITS, "needs 4 side bytes, got 0"),
    ("sign", side(f32(np.inf)) + BITS, "sign magnitude is out of range"),
    ("sign", side(f32(-1)) + BITS, "sign magnitude is out of range"),
    ("qsgd(3)", side(f32(1) * 2) + b"\3" * KERNEL, "needs 12 side bytes, got 8"),
    ("qsgd(3)", side(f32(1) * 4) + b"\3" * KERNEL, "qsgd: 16 bytes of side information"),
    ("qsgd(3)", side(f32(1) * 2 + f32(np.nan)) + b"\3" * KERNEL, "qsgd norm is out of range"),
    ("qsgd(3)", side(f32(1) * 3) + b"\7" * KERNEL, "qsgd code is beyond 6"),
    ("eden", side(f32(np.nan)) + BITS, "eden scale is out of range"),
    ("eden", side(f32(1)) + BITS[:-1], "truncated"),
    ("kmeans(1)", side(f32(1)) + BITS, "needs 8 side bytes, got 4"),
    ("kmeans(1)", side(f32(0) + f32(np.inf)) + BITS, "kmeans centroid is out of range"),
    ("lowrank(1)", side(b"\0") + bytes(4 * 72), "lowrank: 1 bytes of side information"),
    ("lowrank(1)", side(b"") + bytes(4 * 71), "truncated"),
    ("zstd", b"", "cut short"),
    ("zstd", b"not a frame at all", "zstd: .*frame"),
    ("zstd", frame(ZEROS)[:-1], "cut short"),
    ("zstd", frame(ZEROS) + b"\0", "bytes come after it"),
    ("zstd", frame(ZEROS) * 2, "bytes come after it"),
    ("zstd", frame(ZEROS + bytes(9)), "zstd: content is larger than 5120 bytes"),
    ("zstd", frame(ZEROS[:-1]), "truncated"),
    ("zstd", frame(ZEROS) + frame(b""), "bytes come after it"),
    ("zstd", b"\x50\x2a\x4d\x18\4\0\0\0abcd" + frame(ZEROS), "not a frame"),
    ("zstd", b"\x50\x2a\x4d\x18\4\0\0\0abcd", "not a frame"),
    ("zstd", b"\x28\xb5\x2f\xfd\x60\x70\x16\1\0\0", "6000 bytes announced, 0 there"),
]

NOT_FINITE = [
    ("float32", side(b"") + ZEROS[:-4] + struct.pack("<f", np.nan)),
    ("float32", side(b"") + ZEROS[:-4] + struct.pack("<f", -np.inf)),
    ("zstd", frame(struct.pack("<f", np.inf) + ZEROS[:-4])),
    ("float16", side(b"\0\0") + struct.pack("<e", np.inf) + ZEROS[2::2][: 2 * KERNEL - 2]),
    ("float16", side(b"\0\0") + struct.pack("<e", np.nan) + ZEROS[2::2][: 2 * KERNEL - 2]),
    ("float16", side(b"\1\0") + b"\1\x7c" + bytes(2 * KERNEL - 2)),  # a signalling NaN
    ("float16", side(struct.pack("<h", 200)) + struct.pack("<e", 1) + bytes(2 * KERNEL - 2)),
    ("quantize(8)", side(quantizer(3e38, 0)) + b"\xff" * KERNEL),
    ("deadzone(0.2)", side(f32(3e38)) + b"\xff" * KERNEL),
    ("lowrank(1)", side(b"") + struct.pack("<f", 1e30) * 72),
    (TOP, side(gaps(*[5] * 7)) + SEVEN[:-4] + struct.pack("<f", np.nan)),
]


@pytest.mark.parametrize(("text", "section", "message"), HOSTILE)
def test_a_hostile_section_is_refused_with_its_reason(
    text: str, section: bytes, message: str
) -> None:
    with pytest.raises(WireError, match=message) as refused:
        decode(text, section)
    assert refused.type is WireError


@pytest.mark.parametrize(("text", "section"), NOT_FINITE)
def test_a_section_that_is_not_finite_is_refused_as_such(text: str, section: bytes) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        decode(text, section)


HARMLESS = [
    ("float8", side(b"\0\0") + CODES),
    ("deadzone(0.2)", side(f32(1)) + CODES),
    ("sign", side(f32(1)) + BITS),
    ("qsgd(3)", side(f32(1) * 3) + b"\6" * KERNEL),
    ("eden", side(f32(1)) + BITS),
    ("kmeans(1)", side(f32(1) + f32(0)) + BITS),
    ("lowrank(1)", side(b"") + bytes(4 * 72)),
    ("float32", side(b"") + ZEROS),
    ("float16", side(b"\0\0") + ZEROS[::2]),
    ("float16", side(struct.pack("<h", -200)) + b"\1" * 2 * KERNEL),
    ("quantize(8)", side(quantizer(1, 255)) + CODES),
    ("quantize(8, channel)", side(quantizer(0, 0) * 40) + CODES),
    ("quantize(3)", side(quantizer(1, 7)) + CODES[: KERNEL * 3 // 8]),
    (TOP, side(gaps(*[0] * 6, 1273)) + SEVEN),
    ("zstd", frame(ZEROS)),
    ("zstd", frame(ZEROS, level=22)),
    ("zstd", frame(ZEROS, content_size_flag=1, checksum_flag=1)),
]


@pytest.mark.parametrize(("text", "section"), HARMLESS)
def test_the_hostile_sections_would_be_right_but_for_one_thing(text: str, section: bytes) -> None:
    (kernel,) = decode(text, section)
    assert kernel.shape == (32, 40)


# ---- bombs ----


def rle_frame(window_exponent: int, blocks: int, content_size: int | None = None) -> bytes:
    """Return a zstd frame (RFC 8878) of RLE blocks: 4 bytes for each window of zeros."""
    header = b"\x28\xb5\x2f\xfd"
    if content_size is None:
        header += bytes([0, (window_exponent - 10) << 3])
    else:
        header += bytes([0b1100_0000, (window_exponent - 10) << 3])
        header += struct.pack("<Q", content_size)
    block = 2 ** min(window_exponent, 17) << 3 | 1 << 1
    middle = (struct.pack("<I", block)[:3] + b"\0") * (blocks - 1)
    return header + middle + struct.pack("<I", block | 1)[:3] + b"\0"


def test_the_bomb_is_a_valid_frame() -> None:
    data = rle_frame(17, 3)
    assert zstd.decompress(data) == bytes(3 * 2**17)


BOMBS = {
    "inflates to 8 GiB": rle_frame(17, 2**16),
    "inflates to 8 GiB in a window just small enough": rle_frame(13, 2**20),
    "declares 2**60 bytes": rle_frame(17, 1, content_size=2**60),
    "declares 2**60 bytes and no window": b"\x28\xb5\x2f\xfd"
    + b"\xe0"
    + struct.pack("<Q", 2**60)
    + b"\1\0\0",
    "needs a window of 128 MiB": rle_frame(27, 1),
    "needs a window of 2 TiB": rle_frame(41, 1),
    "is zeros under zstd": frame(bytes(2**27)),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_quickly_and_in_little_memory(bomb: bytes) -> None:
    payload, codec = enclose("zstd", bomb), parse_codec("zstd")
    tracemalloc.start()
    try:
        started = time.perf_counter()
        with pytest.raises(WireError, match="zstd"):
            decode_update(codec, NO_FINE, payload)
        assert time.perf_counter() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 4 * len(payload) + 200_000
    finally:
        tracemalloc.stop()


def test_a_window_far_larger_than_the_model_is_refused() -> None:
    streamed = zstd.ZstdCompressor(options={zstd.CompressionParameter.content_size_flag: False})
    section = streamed.compress(ZEROS) + streamed.flush()
    assert section[5] >> 3 > 10, "the window's exponent: more than 2**20 bytes"
    with pytest.raises(WireError, match="zstd: a window of 2097152 bytes, more than 10240"):
        decode("zstd", section)


@pytest.mark.parametrize(
    ("limit", "exponent", "eighths", "right"),
    [
        (5120, 13, 2, True),  # 10240, which no power of two is
        (5120, 13, 3, False),
        (5120, 14, 0, False),
        (1, 10, 0, True),
        (1, 10, 1, False),
        (2**30, 27, 0, True),
        (2**30, 27, 1, False),
        (2**30, 41, 7, False),
    ],
)
def test_the_window_is_held_to_the_byte(
    limit: int, exponent: int, eighths: int, right: bool
) -> None:
    descriptor = bytes([0, (exponent - 10) << 3 | eighths])
    data = b"\x28\xb5\x2f\xfd" + descriptor + b"\1\0\0"  # one empty block
    if right:
        assert Zstd().decompress(data, limit) == b""
    else:
        with pytest.raises(WireError, match="zstd"):
            Zstd().decompress(data, limit)


# ---- fuzz ----


def gives_a_value_or_a_wire_error(text: str, payload: bytes, manifest: Manifest = MODEL) -> None:
    try:
        tensors = decode_update(parse_codec(text), manifest, payload)
    except WireError:
        return
    assert [t.shape for t in tensors] == [spec.shape for spec in manifest]
    assert all(t.dtype == np.float32 and np.isfinite(t).all() for t in tensors)


@pytest.mark.parametrize("text", CODECS)
@given(payload=st.binary(max_size=300), enveloped=st.booleans())
@settings(max_examples=200, deadline=None)
def test_random_bytes_give_a_value_or_a_wire_error(
    text: str, payload: bytes, enveloped: bool
) -> None:
    gives_a_value_or_a_wire_error(
        text, seal(payload, context(text)) if enveloped else MAGIC + bytes([VERSION]) + payload
    )


Edit = Callable[[bytearray, int, int], None]


def overwrite(data: bytearray, at: int, value: int) -> None:
    data[at % len(data)] = value


def insert(data: bytearray, at: int, value: int) -> None:
    data.insert(at % len(data), value)


def delete(data: bytearray, at: int, value: int) -> None:
    del data[at % len(data) : at % len(data) + value % 8]


EDITS = st.tuples(
    st.sampled_from([overwrite, overwrite, insert, delete]),
    st.one_of(st.integers(0, 40), st.integers(0, 10_000)),
    st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255)),
)
BODIES = {
    text: bytes(
        unseal(encode_update(parse_codec(text), MODEL, some_update()).payload, context(text))
    )
    for text in CODECS
}


@pytest.mark.skipif(not AVAILABLE, reason="constriction has no wheel for this platform")
def test_range_is_refused_unless_it_is_what_a_writer_makes() -> None:
    content = bytes(590) + bytes(range(10))
    coded = Range().compress(content)
    assert len(coded) < 120
    assert Range().decompress(coded, 600) == content
    for bad, message in [
        (b"", "truncated"),
        (coded[:-1], "words are cut short"),
        (coded[:-4], "not those of their content"),
        (coded + bytes(4), "not those of their content"),
        (varint(2 * 600 + 1) + content, "not those of their content"),
        (varint(2 * 601) + coded[2:], "larger than 600 bytes"),
        (varint(2 * 10**9) + coded[2:], "larger than 600 bytes"),
        (varint(2 * 600) + b"\xff" * 40, "Tried to decode from compressed data"),
    ]:
        with pytest.raises(WireError, match=message):
            Range().decompress(bad, 600)
    noise = np.random.default_rng(0).bytes(600)
    assert Range().compress(noise) == varint(2 * 600 + 1) + noise


def test_without_its_package_range_is_unknown_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STAGES, "range", raising=False)
    with pytest.raises(CodecError, match=r"featherfed\[range\]"):
        parse_codec.__wrapped__("qsgd(1) | range")  # not what is remembered of earlier


@pytest.mark.parametrize("text", CODECS)
@given(edits=st.lists(EDITS, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_mutated_payloads_give_a_value_or_a_wire_error(
    text: str, edits: list[tuple[Edit, int, int]]
) -> None:
    body = bytearray(BODIES[text])
    for edit, at, value in edits:
        if body:
            edit(body, at, value)
    gives_a_value_or_a_wire_error(text, seal(bytes(body), context(text)))


@pytest.mark.parametrize("text", [text for text in CODECS if "zstd" in text or "range" in text])
@given(edits=st.lists(EDITS, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_mutations_below_the_compression_give_a_value_or_a_wire_error(
    text: str, edits: list[tuple[Edit, int, int]]
) -> None:
    codec = parse_codec(text)
    plain = bytearray(plain_section(text))
    for edit, at, value in edits:
        edit(plain, at, value)
    section = codec.stages[-1].compress(bytes(plain))
    gives_a_value_or_a_wire_error(text, enclose(text, section), NO_FINE)


def plain_section(text: str) -> bytes:
    """Return the bytes that the codec's byte stage compresses."""
    codec = parse_codec(text)
    section = codec.encode(some_update()[:1])
    return codec.stages[-1].decompress(section, codec.limit([(32, 40)]))


@pytest.mark.parametrize("text", CODECS)
def test_the_fuzzed_payloads_are_right_before_they_are_mutated(text: str) -> None:
    payload = seal(BODIES[text], context(text))
    codec = parse_codec(text)
    assert len(payload) <= max_payload(codec, MODEL)
    assert len(decode_update(codec, MODEL, payload)) == len(MODEL)


def test_an_empty_model_has_a_payload_too() -> None:
    empty = Manifest(())
    for text in CODECS:
        codec = parse_codec(text)
        assert decode_update(codec, empty, encode_update(codec, empty, []).payload) == []
