"""The released files that a server keeps and offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.releases import FIRST, moved, sha

from featherfed.compression.exchange.filedelta import decode_file
from featherfed.server.errors import Refused
from featherfed.server.transfers.releases import KEPT, Offer, Releases


class Maker:
    """An exporter of made-up files: a new one after every call of `train`."""

    def __init__(self) -> None:
        self.version = 0
        self.files: list[bytes] = [FIRST]
        self.made: list[tuple[str, int]] = []
        self.fails = False

    def train(self) -> None:
        self.version += 1
        self.files.append(moved(self.files[-1], self.version))

    def __call__(self, kind: str) -> tuple[int, bytes]:
        self.made.append((kind, self.version))
        if self.fails:
            raise RuntimeError("cannot be converted")
        return self.version, self.files[self.version]


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def releases(tmp_path: Path, maker: Maker) -> Iterator[Releases]:
    made = Releases(tmp_path / "releases", ("int8", "float32"), lambda: maker.version, maker)
    yield made
    made.close()


def file_of(offer: Offer | None, old: bytes = b"") -> bytes:
    assert offer is not None
    data = decode_file(offer.data, offer.release.size, old if offer.release.delta else b"")
    assert sha(data) == offer.release.digest
    assert len(offer.data) == offer.release.compressed
    return data


def test_version_0_is_not_released(releases: Releases, maker: Maker) -> None:
    assert releases.offer("", b"").result() is None
    assert maker.made == []


def test_a_device_gets_a_delta_if_its_file_is_known_and_else_all(
    releases: Releases, maker: Maker
) -> None:
    maker.train()
    first = releases.offer("", b"").result()
    assert file_of(first) == maker.files[1]
    assert releases.offer("int8", sha(maker.files[1])).result() is None
    maker.train()
    delta = releases.offer("int8", sha(maker.files[1])).result()
    assert file_of(delta, maker.files[1]) == maker.files[2]
    assert delta
    assert delta.release.delta
    whole = releases.offer("int8", sha(b"edited by hand")).result()
    assert file_of(whole) == maker.files[2]
    assert whole
    assert len(delta.data) < len(whole.data) / 3
    assert maker.made == [("int8", 1), ("int8", 2)]


def test_a_delta_that_is_no_smaller_is_not_sent(releases: Releases, maker: Maker) -> None:
    maker.train()
    releases.offer("", b"").result()
    maker.version, maker.files = 2, [b"", maker.files[1], bytes(5000)]
    offer = releases.offer("", sha(maker.files[1])).result()
    assert file_of(offer) == bytes(5000)
    assert offer
    assert not offer.release.delta


def test_many_that_ask_at_once_have_it_made_once(releases: Releases, maker: Maker) -> None:
    maker.train()
    asked = [releases.offer("int8", bytes([i]) * 32) for i in range(50)]
    assert {file_of(one.result()) for one in asked} == {maker.files[1]}
    assert maker.made == [("int8", 1)]


def test_the_last_files_are_kept_and_found_again(
    releases: Releases, maker: Maker, tmp_path: Path
) -> None:
    for _ in range(KEPT + 3):
        maker.train()
        releases.offer("int8", b"").result()
    releases.offer("float32", b"").result()
    folder = tmp_path / "releases"
    assert len(list(folder.glob("int8-*"))) == KEPT
    left = folder / ".new-int8-00009.tflite"
    left.write_bytes(b"of a server that was killed")
    (folder / "notes.tflite").write_bytes(b"somebody else's")
    maker.made.clear()
    again = Releases(folder, ("int8",), lambda: maker.version, maker)
    assert not left.exists()
    delta = again.offer("int8", sha(maker.files[4])).result()
    assert file_of(delta, maker.files[4]) == maker.files[KEPT + 3]
    assert delta
    assert delta.release.delta
    dropped = again.offer("int8", sha(maker.files[3])).result()
    assert dropped
    assert not dropped.release.delta
    assert maker.made == [], "what is on disk is not made again"
    again.close()


def test_a_damaged_file_is_no_base_and_is_made_again_if_it_is_the_newest(
    releases: Releases, maker: Maker, tmp_path: Path
) -> None:
    for _ in range(2):
        maker.train()
        releases.offer("int8", b"").result()
    for path in (tmp_path / "releases").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    offer = releases.offer("int8", sha(maker.files[1])).result()
    assert file_of(offer) == maker.files[2]
    assert offer
    assert not offer.release.delta
    assert maker.made == [("int8", 1), ("int8", 2), ("int8", 2)]


def test_a_version_that_cannot_be_released_is_tried_once(releases: Releases, maker: Maker) -> None:
    maker.train()
    maker.fails = True
    for _ in range(3):
        with pytest.raises(Refused, match="could not be released as int8; the server's log"):
            releases.offer("int8", b"").result()
    assert maker.made == [("int8", 1)]
    maker.fails = False
    maker.train()
    assert file_of(releases.offer("int8", b"").result()) == maker.files[2]


def test_odd_requests_are_refused(releases: Releases) -> None:
    with pytest.raises(Refused, match="no files of the kind 'exe'; ask for one of int8, float32"):
        releases.offer("exe", b"")
    with pytest.raises(Refused, match="5 bytes are no SHA-256"):
        releases.offer("int8", b"short")
