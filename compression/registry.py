"""Codec text: `topk(0.01) | quantize(8) | zstd`. One dict, one function, one error."""

from __future__ import annotations

import ast
import difflib
import threading
from dataclasses import fields
from typing import Any

from featherfed.compression.chain import Codec, chain
from featherfed.compression.deadzone import DeadZone
from featherfed.compression.eden import Eden
from featherfed.compression.entropy import AVAILABLE, Range
from featherfed.compression.errors import CodecError
from featherfed.compression.floats import Float8, Float16, Float32
from featherfed.compression.kmeans import KMeans
from featherfed.compression.lossless import Zstd
from featherfed.compression.lowrank import LowRank
from featherfed.compression.qsgd import Qsgd
from featherfed.compression.quantize import Quantize
from featherfed.compression.sign import Sign
from featherfed.compression.sketch import Sketch
from featherfed.compression.stage import Stage
from featherfed.compression.topk import TopK

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

MAX_TEXT = 200

# CPython 3.11 counts the depth of syntax trees for all threads together, and raises SystemError
# when two build one at the same time (python/cpython#106905).
_one_at_a_time = threading.Lock()


def parse_codec(text: str) -> Codec:
    """Return the codec that `text` describes; raise CodecError that says what is wrong with it.

    `str` of a codec is its canonical text, and gives an equal codec here.
    The text is a Python expression of names, calls with plain arguments, and `|`; nothing in it
    is evaluated.
    """
    if len(text) > MAX_TEXT:
        raise CodecError(f"codec text is longer than {MAX_TEXT} characters")
    try:
        with _one_at_a_time:
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CodecError(f"{text!r} is not a codec; write e.g. quantize(8) | zstd") from error
    try:
        codec = _join(_stages(tree))
    except CodecError as error:
        raise CodecError(f"codec {text!r}: {error}") from None
    if len(str(codec)) > MAX_TEXT:
        raise CodecError(f"codec text is longer than {MAX_TEXT} characters when written out")
    return codec


def _join(stages: list[Stage | Sketch]) -> Codec:
    match stages:
        case [Sketch() as sketch]:
            return sketch
        case _ if any(isinstance(stage, Sketch) for stage in stages):
            raise CodecError("sketch is a whole codec: nothing comes before or after it")
        case _:
            return chain(*stages)  # type: ignore[arg-type]


def _stages(node: ast.expr) -> list[Stage | Sketch]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_stages(node.left), *_stages(node.right)]
    if isinstance(node, ast.Name):
        return [_build(node.id, [], {})]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        named = {str(k.arg): _argument(k.value) for k in node.keywords}
        if len(named) < len(node.keywords):
            raise CodecError(f"{node.func.id} is given the same argument twice")
        return [_build(node.func.id, [_argument(a) for a in node.args], named)]
    raise CodecError("stages are names like zstd or topk(0.01), joined by |")


def _argument(node: ast.expr) -> object:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, str):
        return node.value
    raise CodecError("arguments are numbers or words")


def _build(name: str, args: list[object], named: dict[str, object]) -> Stage | Sketch:
    if name == Range.name and name not in STAGES:
        raise CodecError(
            "range needs the package constriction, which this machine lacks (and which has no "
            "wheel for Linux on ARM): pip install 'featherfed[range]', or use zstd"
        )
    if name not in STAGES:
        close = difflib.get_close_matches(name, STAGES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise CodecError(f"unknown stage {name!r}{hint} Stages: {', '.join(sorted(STAGES))}")
    try:
        stage: Stage | Sketch = STAGES[name](*args, **named)
    except TypeError:
        wanted = ", ".join(field.name for field in fields(STAGES[name]))
        raise CodecError(f"{name} takes ({wanted})") from None
    return stage
