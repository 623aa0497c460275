"""Codec text such as `topk(0.01) | quantize(8) | zstd`: all stages by name, and the parser."""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import fields
from typing import Any

from featherfed.compression.chain import chain
from featherfed.compression.codec import Codec
from featherfed.compression.errors import CodecError
from featherfed.compression.sketch import BOUNDED, COARSE, Sketch
from featherfed.compression.stage import Stage
from featherfed.compression.stages.deadzone import DeadZone
from featherfed.compression.stages.eden import Eden
from featherfed.compression.stages.floats import Float8, Float16, Float32
from featherfed.compression.stages.kmeans import KMeans
from featherfed.compression.stages.lowrank import LowRank
from featherfed.compression.stages.qsgd import Qsgd
from featherfed.compression.stages.quantize import Quantize
from featherfed.compression.stages.range import AVAILABLE, Range
from featherfed.compression.stages.sign import Sign
from featherfed.compression.stages.topk import TopK
from featherfed.compression.stages.zstd import Zstd

STAGES: dict[str, type[Any]] = {
    stage.name: stage
    for stage in (
        Float32,
        Float16,
        Float8,
        Quantize,
        DeadZone,
        Qsgd,
        Sign,
        Eden,
        KMeans,
        LowRank,
        TopK,
        Zstd,
        Sketch,
    )
}
"""Every stage by its name in codec text."""
if AVAILABLE:
    STAGES[Range.name] = Range


def abilities() -> frozenset[str]:
    """Return all that a codec may need of a peer and that this code can do."""
    return frozenset(STAGES) | {BOUNDED, COARSE}


MAX_TEXT = 200
"""Most characters of codec text."""

_ARGUMENTS = "arguments are numbers or words, with commas between them, in ()"

_NAME = re.compile(r"\s*(?P<it>[^\W\d]\w*)")
_NAMED = re.compile(_NAME.pattern + r"\s*=")
_QUOTED = re.compile(r"""\s*(?P<quote>['"])(?P<it>[^'"\\]*)(?P=quote)""")
_NUMBER = re.compile(r"\s*(?P<it>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(?![\w.])")


@functools.lru_cache(maxsize=256)
def parse_codec(text: str) -> Codec:
    """Return the codec that `text` describes; raise CodecError that says what is wrong with it.

    `str` of a codec is its canonical text, which parses to an equal codec. The text is stages
    joined by `|`, each a name or a call with numbers and words. (Python's own parser would do, but
    CPython 3.11.7 fails when two threads use it: python/cpython#106905.)
    """
    if len(text) > MAX_TEXT:
        raise CodecError(f"codec text is longer than {MAX_TEXT} characters")
    try:
        codec = _join(_Parser(text).parse())
    except CodecError as error:
        raise CodecError(f"codec {text!r}: {error}") from None
    if len(str(codec)) > MAX_TEXT:
        raise CodecError(f"codec text is longer than {MAX_TEXT} characters when written out")
    return codec


def _join(stages: list[Stage | Sketch]) -> Codec:
    """Return the codec of all stages together; a sketch is a whole codec by itself."""
    match stages:
        case [Sketch() as sketch]:
            return sketch
        case _ if any(isinstance(stage, Sketch) for stage in stages):
            raise CodecError("sketch is a whole codec: nothing comes before or after it")
        case _:
            return chain(*stages)  # type: ignore[arg-type]


class _Parser:
    """Reads codec text from left to right; raises CodecError for anything else."""

    def __init__(self, text: str) -> None:
        self._text = text.rstrip()
        self._at = 0

    def parse(self) -> list[Stage | Sketch]:
        """Return the stages of the whole text."""
        stages = self._stages()
        self._expect(self._at == len(self._text))
        return stages

    def _stages(self) -> list[Stage | Sketch]:
        stages = self._group()
        while self._take("|"):
            stages += self._group()
        return stages

    def _group(self) -> list[Stage | Sketch]:
        if self._take("("):
            stages = self._stages()
            self._expect(self._take(")"))
            return stages
        name = self._match(_NAME)
        self._expect(name is not None)
        args, named = self._arguments() if self._take("(") else ([], {})
        return [_build(str(name), args, named)]

    def _arguments(self) -> tuple[list[object], dict[str, object]]:
        args: list[object] = []
        named: dict[str, object] = {}
        while not self._take(")"):
            if (args or named) and not self._take(","):
                raise CodecError(_ARGUMENTS)
            name = self._match(_NAMED)
            value = self._value()
            if name is None:
                self._expect(not named)
                args.append(value)
            elif name in named:
                raise CodecError(f"the same argument twice: {name}")
            else:
                named[name] = value
        return args, named

    def _value(self) -> int | float | str:
        for pattern in (_NAME, _QUOTED):
            word = self._match(pattern)
            if word is not None:
                return word
        number = self._match(_NUMBER)
        if number is None:
            raise CodecError(_ARGUMENTS)
        return int(number) if number.isdecimal() else float(number)

    def _take(self, mark: str) -> bool:
        rest = self._text[self._at :].lstrip()
        if not rest.startswith(mark):
            return False
        self._at = len(self._text) - len(rest) + len(mark)
        return True

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found["it"]

    def _expect(self, holds: bool) -> None:
        if not holds:
            raise CodecError(
                "not a codec; stages are names like zstd or topk(0.01), joined by |, "
                "e.g. quantize(8) | zstd"
            )


def _build(name: str, args: list[object], named: dict[str, object]) -> Stage | Sketch:
    if name == Range.name and name not in STAGES:
        raise CodecError(
            "range needs the package constriction, which this machine lacks (and which has no "
            "wheel for Linux on ARM): pip install 'featherfed[range]', or use zstd"
        )
    if name not in STAGES:
        close = difflib.get_close_matches(name, STAGES, 1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise CodecError(f"unknown stage {name!r}{hint} Stages: {', '.join(sorted(STAGES))}")
    try:
        stage: Stage | Sketch = STAGES[name](*args, **named)
    except TypeError:
        wanted = ", ".join(field.name for field in fields(STAGES[name]))
        raise CodecError(f"{name} takes ({wanted})") from None
    return stage
