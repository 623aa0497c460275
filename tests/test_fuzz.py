"""The fuzzing corpus is replayed, and grown for some seconds where atheris has a wheel."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from support import fuzz


def test_every_example_decodes() -> None:
    for example in fuzz.examples():
        # Links come without the digest of what they lead to.
        with fuzz.no_checksums, contextlib.suppress(fuzz.DigestMismatch):
            fuzz.target_of(example[0])(example[1:])


@pytest.mark.parametrize("path", sorted(fuzz.CORPUS.iterdir()), ids=lambda path: path.name[:8])
def test_an_input_of_the_corpus_gives_a_value_or_a_typed_error(path: Path) -> None:
    fuzz.one_input(path.read_bytes())


@pytest.mark.skipif(fuzz.atheris is None, reason="atheris has no wheel for this platform")
def test_some_seconds_of_fuzzing_find_nothing(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(fuzz.CORPUS, corpus)
    assert fuzz.fuzz(6, corpus) == 0
