"""Reads metrics.json (docs/metrics.md) into frozen objects, checked once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from featherfed.report.model import (
    Final,
    Model,
    Refusal,
    ReportError,
    Round,
    Run,
    Traffic,
    Update,
)

SCHEMA = 1

T = TypeVar("T")


def read_metrics(path: Path) -> Run:
    """Read and check a metrics.json. Raises `ReportError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReportError(
            f"{path}: no such file; give the output folder of a run (it holds metrics.json)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            f"{path}: not readable JSON ({error}); run again, or restore the file"
        ) from error
    try:
        return parse_metrics(data)
    except ReportError as error:
        raise ReportError(f"{path}: {error}; see docs/metrics.md for what it must hold") from error


def parse_metrics(data: object) -> Run:
    """Check the object of a metrics.json. Raises `ReportError` naming the key that is wrong."""
    run = _Node(data, "")
    if run.whole("schema") != SCHEMA:
        raise ReportError(
            f"schema is {run.whole('schema')}, this featherfed reads {SCHEMA}; install the"
            " featherfed that wrote it"
        )
    return Run(
        featherfed=run.text("featherfed"),
        name=run.text("run"),
        dataset=run.text("dataset"),
        num_test_examples=run.whole("num_test_examples"),
        num_parameters=run.whole("num_parameters"),
        float32_bytes=run.whole("float32_bytes", at_least=1),
        settings=run.facts("settings"),
        started=run.text("started", ""),
        machine=run.facts("machine"),
        rounds=tuple(run.each("rounds", _round)),
        final=_final(run.child("final")) if run.has("final") else None,
    )


def _round(node: _Node) -> Round:
    return Round(
        number=node.whole("round"),
        accuracy=node.number("accuracy"),
        loss=node.number("loss"),
        seconds=node.number("seconds"),
        version=node.whole("version"),
        digest=node.text("digest"),
        sparsity=node.number("sparsity"),
        updates=tuple(node.each("clients", _update)),
        missing=tuple(node.texts("missing")),
        refused=tuple(node.each("refused", _refusal)),
    )


def _update(node: _Node) -> Update:
    return Update(
        client=node.text("client"),
        num_examples=node.whole("num_examples"),
        accuracy=node.number("accuracy"),
        train_loss=node.number("train_loss"),
        uplink=_traffic(node.child("uplink")),
        downlink=_traffic(node.child("downlink")),
    )


def _refusal(node: _Node) -> Refusal:
    return Refusal(node.text("client"), node.text("reason"), node.text("detail", ""))


def _traffic(node: _Node) -> Traffic:
    return Traffic(
        payload=node.whole("payload_bytes"),
        message=node.whole("message_bytes"),
        control=node.whole("control_bytes"),
        retry=node.whole("retry_bytes"),
    )


def _final(node: _Node) -> Final:
    totals = node.child("totals")
    return Final(
        accuracy=node.number("accuracy"),
        loss=node.number("loss"),
        digest=node.text("digest"),
        version=node.whole("version"),
        sparsity=node.number("sparsity"),
        seconds=node.number("seconds"),
        deliveries=tuple(node.each("clients", _delivery)),
        uplink=_traffic(totals.child("uplink")),
        downlink=_traffic(totals.child("downlink")),
        models=tuple(node.each("models", _model)),
    )


def _delivery(node: _Node) -> tuple[str, Traffic]:
    return node.text("client"), _traffic(node.child("downlink"))


def _model(node: _Node) -> Model:
    return Model(
        file=node.text("file"),
        kind=node.text("kind"),
        size=node.whole("bytes"),
        gzip_size=node.whole("gzip_bytes") if node.has("gzip_bytes") else None,
        accuracy=node.number("accuracy"),
        num_examples=node.whole("num_examples") if node.has("num_examples") else None,
    )


def printable(text: str) -> str:
    """Return ``text`` with control, bidi and surrogate characters replaced; names are hostile."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class _Node:
    """A JSON object and where it was found; every getter says what is wrong with its key."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise ReportError(f"{where or 'the file'} is not an object")
        self._data: Mapping[str, Any] = data
        self._where = where

    def has(self, key: str) -> bool:
        return self._data.get(key) is not None

    def child(self, key: str) -> _Node:
        return _Node(self._data.get(key), self._path(key))

    def each(self, key: str, read: Callable[[_Node], T]) -> list[T]:
        return [read(_Node(item, f"{self._path(key)}[{i}]")) for i, item in self._items(key)]

    def texts(self, key: str) -> list[str]:
        return [printable(str(item)) for _, item in self._items(key)]

    def text(self, key: str, default: str | None = None) -> str:
        value = self._data.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return printable(value)

    def whole(self, key: str, at_least: int = 0) -> int:
        value = self._data.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value < 2**63:
            raise self._wrong(key, f"a whole number from {at_least}")
        return value

    def number(self, key: str) -> float | None:
        value = self._data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number or null")
        try:
            return float(value)
        except OverflowError as error:
            raise self._wrong(key, "a smaller number") from error

    def facts(self, key: str) -> tuple[tuple[str, str], ...]:
        node = self.child(key) if self.has(key) else _Node({}, "")
        return tuple((printable(str(k)), printable(_plain(v))) for k, v in node._data.items())

    def _items(self, key: str) -> list[tuple[int, Any]]:
        value = self._data.get(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return list(enumerate(value))

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def _wrong(self, key: str, needed: str) -> ReportError:
        if key not in self._data:
            return ReportError(f"{self._path(key)} is missing; it must be {needed}")
        return ReportError(f"{self._path(key)} is {self._data[key]!r:.60}; it must be {needed}")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
