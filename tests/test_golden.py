"""Payloads of the past decode to what they always did. Golden files are never regenerated.

A change that breaks one of these tests is a new version of the wire format (docs/wire-format.md).
`python tests/test_golden.py --add` writes the files of new codecs and leaves all others alone.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.codec_texts import CODECS

from featherfed.compression.arrays import Array
from featherfed.compression.context import NO_CONTEXT, Context
from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, weights_digest
from featherfed.compression.exchange.masks import Masks
from featherfed.compression.exchange.update import decode_update, encode_update
from featherfed.compression.importance import measure_importance
from featherfed.compression.key import Key
from featherfed.compression.registry import parse_codec
from featherfed.compression.stages.range import AVAILABLE

SKETCHES = [
    "sketch(0.05)",
    "sketch(0.3, 4, profile)",
    "sketch(0.1, 2, bare, held)",
    "sketch(0.3, 4, bounded)",
    "sketch(0.06, 0.1875, bounded, whole)",
    "sketch(0.06, 0.1875, coarse)",
    "sketch(0.1, 1, levels)",
]
EVERY = [*CODECS, *SKETCHES]

FOLDER = Path(__file__).parent / "golden"
DIGESTS = FOLDER / "digests.json"

MODEL = Manifest(
    (
        TensorSpec("conv", (4, 8, 33)),
        TensorSpec("dense", (64, 17), prunable=True),
        TensorSpec("bias", (17,)),
        TensorSpec("mean", (17,), Role.STATISTIC),
        TensorSpec("variance", (17,), Role.NONNEGATIVE),
        TensorSpec("scale", ()),
        TensorSpec("nothing", (0,)),
    )
)


def shuffled(spec: TensorSpec) -> Array:
    """Return multiples of 2**-12, none as large as another: they leave topk no choice."""
    numbers = np.arange(spec.size, dtype=np.int64) * 7919 % max(1, spec.size)
    return ((numbers * 4 - 1999) / 4096).astype(np.float32).reshape(spec.shape)


UPDATE = [shuffled(spec) for spec in MODEL]
MASKS: Masks = [
    None,
    (np.arange(64 * 17) % 3 > 0).reshape(64, 17),
    *[None] * 5,
]
KNOWN = measure_importance([UPDATE[i] for i, s in enumerate(MODEL) if s.role is Role.TRAINABLE])
STATISTICS = np.linspace(0, 1, 34, dtype=np.float32)


def context_of(text: str) -> Context:
    """Return what the payload was made in: for a sketch, slot 1 of 3 with known importance."""
    return Context(Key.root(7), 1, 3, KNOWN, STATISTICS) if text in SKETCHES else NO_CONTEXT


def path_of(text: str) -> Path:
    return FOLDER / f"{re.sub('[^a-z0-9.]+', '-', text).strip('-')}.bin"


def encode(text: str) -> bytes:
    codec, context = parse_codec(text), context_of(text)
    return encode_update(codec, MODEL, UPDATE, masks=MASKS, context=context).payload


def decoded_digest(text: str, payload: bytes) -> str:
    codec, context = parse_codec(text), context_of(text)
    return weights_digest(decode_update(codec, MODEL, payload, masks=MASKS, context=context)).hex()


def read_digests() -> dict[str, str]:
    return json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}


READABLE = [text for text in read_digests() if "range" not in text or AVAILABLE]
"""What this platform can decode."""
ELSEWHERE = ("zstd", "lowrank", "sketch")


def add_missing() -> list[Path]:
    """Write the golden files that do not exist yet; return their paths."""
    FOLDER.mkdir(exist_ok=True)
    digests, added = read_digests(), []
    for text in EVERY:
        path = path_of(text)
        if not path.exists():
            path.write_bytes(encode(text))
            added.append(path)
        if text not in digests:
            digests[text] = decoded_digest(text, path.read_bytes())
    DIGESTS.write_text(json.dumps(digests, indent=2) + "\n")
    return added


def test_the_values_leave_topk_no_choice() -> None:
    for tensor in UPDATE:
        assert len(np.unique(np.abs(tensor))) == tensor.size


def test_every_golden_file_belongs_to_one_codec() -> None:
    names = [path_of(text).name for text in read_digests()]
    assert sorted(names) == sorted(path.name for path in FOLDER.glob("*.bin"))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", EVERY)
def test_every_codec_has_a_golden_file(text: str) -> None:
    assert path_of(text).exists(), "run: python tests/test_golden.py --add"


@pytest.mark.parametrize("text", READABLE)
def test_a_golden_payload_decodes_to_what_it_always_did(text: str) -> None:
    assert decoded_digest(text, path_of(text).read_bytes()) == read_digests()[text]


@pytest.mark.parametrize(
    "text", [text for text in READABLE if not any(word in text for word in ELSEWHERE)]
)
def test_encoding_gives_the_golden_bytes(text: str) -> None:
    """Not for zstd, whose output may change, nor for what a matrix library has a part in."""
    assert encode(text) == path_of(text).read_bytes()


def test_adding_golden_files_never_overwrites_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.FOLDER", tmp_path)
    monkeypatch.setattr(f"{__name__}.DIGESTS", tmp_path / "digests.json")
    assert len(add_missing()) == len(EVERY)
    kept, lost = path_of(CODECS[0]), path_of(CODECS[1])
    kept.write_bytes(b"kept as it is")
    lost.unlink()
    assert add_missing() == [lost]
    assert kept.read_bytes() == b"kept as it is"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", action="store_true", required=True, help="write missing files")
    parser.parse_args()
    for path in add_missing():
        print(f"added {path}")
