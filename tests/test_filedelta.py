"""Deltas between two files."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.releases import FIRST, SECOND

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.filedelta import decode_file, encode_file
from featherfed.compression.stages.zstd import Zstd


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_file_comes_out_of_its_delta(new: bytes, old: bytes) -> None:
    assert decode_file(encode_file(new, old), len(new), old) == new
    assert decode_file(encode_file(new), len(new)) == new


def test_a_delta_between_near_files_is_small() -> None:
    assert len(encode_file(SECOND, FIRST)) < 0.3 * len(encode_file(SECOND))


@given(st.binary(max_size=60), st.integers(0, 300), st.binary(max_size=300))
def test_any_bytes_give_a_file_of_the_announced_size_or_a_wire_error(
    payload: bytes, size: int, old: bytes
) -> None:
    with suppress(WireError):
        assert len(decode_file(payload, size, old)) == size


@given(st.data())
def test_a_mutated_delta_gives_a_file_of_the_announced_size_or_a_wire_error(data: Any) -> None:
    payload = bytearray(encode_file(SECOND[:200], FIRST[:200]))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    with suppress(WireError):
        assert len(decode_file(bytes(payload), 200, FIRST)) == 200


@pytest.mark.parametrize("size", [0, 4999, 5001, 2**20])
def test_another_size_than_announced_is_refused(size: int) -> None:
    with pytest.raises(WireError):
        decode_file(encode_file(FIRST), size)


def test_a_bomb_is_refused_before_it_is_large() -> None:
    bomb = Zstd(19).compress(bytes(2**26))
    assert len(bomb) < 10_000
    for size in (100, 2**25):
        with pytest.raises(WireError):
            decode_file(bomb, size)


def test_a_delta_of_the_past_gives_what_it_always_did() -> None:
    golden = bytes.fromhex("28b52ffd0000410000030001fe000000ff")
    assert decode_file(golden, 8, b"\x10\xff\x02\x03") == b"\x13\xff\x03\x01\x00\x00\x00\xff"
