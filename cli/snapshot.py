"""Reads the snapshot of a run that its live page sends: what a run is doing now.

A page may be anyone's: texts are made printable and cut, numbers are finite or None, and lists are
no longer than a page sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from featherfed.proto.peer_text import printable

SCHEMA = 1
"""The number of the snapshot's form that this version reads."""
MAX_CLIENTS = 10_000
MAX_ROWS = 1000
"""Most rounds and log lines that are kept."""
_MAX_NAME = 64
_MAX_TEXT = 300
_MAX_COUNT = 2**53  # more is no count of anything here, and slow to print
_MAX_SECONDS = 1e9

T = TypeVar("T")


class PageError(ValueError):
    """A live page cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Point:
    """A round that has ended; bytes are those of all messages, None is unknown."""

    round: int
    score: float | None
    loss: float | None
    seconds: float | None
    up: int | None
    down: int | None
    discarded: str
    """Why its model was not adopted; empty if it was."""


@dataclass(frozen=True)
class WatchedClient:
    """A client as the server knows it; None is unknown."""

    name: str
    state: str
    heard_ago: float | None
    """Seconds since its last call."""
    examples: int | None
    seconds: float | None
    """That its last training took."""
    runtime: str
    temperature: float | None
    """Degrees Celsius."""
    battery: float | None
    """Percent."""
    score: float | None
    """Of the leading metric."""


@dataclass(frozen=True)
class Line:
    """A refusal or an event of the log."""

    time: str
    who: str
    """The client that was refused, or the event's level."""
    text: str


@dataclass(frozen=True)
class Snapshot:
    """What a run was doing at one moment; rounds are in order, refusals and log newest first."""

    run: str
    phase: str
    round: int
    rounds: int
    version: int
    deadline_in: float | None
    waiting_for: int
    join: str
    metric: str
    best_version: int | None
    best_score: float | None
    up: int
    down: int
    wasted: int
    float32: int
    points: tuple[Point, ...]
    clients: tuple[WatchedClient, ...]
    refusals: tuple[Line, ...]
    log: tuple[Line, ...]

    @property
    def finished(self) -> bool:
        """Whether the run has ended, so that nothing more happens."""
        return self.phase == "finished"


def parse(text: bytes) -> Snapshot:
    """Return the snapshot in a page's JSON; raise PageError if it is none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PageError("the page sends no JSON: is it a run's live page?") from error
    if not isinstance(data, dict) or "schema" not in data:
        raise PageError("the page sends no snapshot of a run: is it a run's live page?")
    if data["schema"] != SCHEMA:
        raise PageError(
            f"the page's snapshots have form {printable(str(data['schema']), 20)}, this version "
            f"reads form {SCHEMA}: update the older of server and this machine"
        )
    metric, best, bytes_ = (_object(data.get(key)) for key in ("metric", "best", "bytes"))
    return Snapshot(
        run=_name(data.get("run")),
        phase=_name(data.get("phase")),
        round=_count(data.get("round")) or 0,
        rounds=_count(data.get("rounds")) or 0,
        version=_count(data.get("version")) or 0,
        deadline_in=_seconds(data.get("deadline_in")),
        waiting_for=_count(data.get("waiting_for")) or 0,
        join=_text(data.get("join")),
        metric=_name(metric.get("name")) or "score",
        best_version=_count(best.get("version")),
        best_score=_number(best.get("score")),
        up=_count(bytes_.get("up")) or 0,
        down=_count(bytes_.get("down")) or 0,
        wasted=_count(bytes_.get("wasted")) or 0,
        float32=_count(bytes_.get("float32")) or 0,
        points=_rows(data.get("points"), _point, MAX_ROWS, newest_last=True),
        clients=_rows(data.get("clients"), _client, MAX_CLIENTS),
        refusals=_rows(data.get("refusals"), _refusal, MAX_ROWS),
        log=_rows(data.get("log"), _log_line, MAX_ROWS),
    )


def _rows(
    value: object, read: Callable[[dict[str, Any]], T], most: int, newest_last: bool = False
) -> tuple[T, ...]:
    rows = value if isinstance(value, list) else []
    kept = rows[-most:] if newest_last else rows[:most]
    return tuple(read(row) for row in kept if isinstance(row, dict))


def _point(row: dict[str, Any]) -> Point:
    return Point(
        round=_count(row.get("round")) or 0,
        score=_number(row.get("score")),
        loss=_number(row.get("loss")),
        seconds=_seconds(row.get("seconds")),
        up=_count(row.get("up")),
        down=_count(row.get("down")),
        discarded=_text(row.get("discarded")),
    )


def _client(row: dict[str, Any]) -> WatchedClient:
    return WatchedClient(
        name=_name(row.get("name")),
        state=_name(row.get("state")),
        heard_ago=_seconds(row.get("heard_ago")),
        examples=_count(row.get("examples")),
        seconds=_seconds(row.get("seconds")),
        runtime=_name(row.get("runtime")),
        temperature=_number(row.get("temperature")),
        battery=_number(row.get("battery")),
        score=_number(row.get("score")),
    )


def _refusal(row: dict[str, Any]) -> Line:
    text = _text(row.get("text")) or _name(row.get("reason"))
    return Line(_name(row.get("time")), _name(row.get("client")), text)


def _log_line(row: dict[str, Any]) -> Line:
    return Line(_name(row.get("time")), _name(row.get("level")), _text(row.get("text")))


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(value: object) -> str:
    return printable(value, _MAX_NAME) if isinstance(value, str) else ""


def _text(value: object) -> str:
    return printable(value, _MAX_TEXT) if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _MAX_COUNT else None  # NaN is not, either


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None or number < 0 else int(number)


def _seconds(value: object) -> float | None:
    number = _number(value)
    return None if number is None or not 0 <= number <= _MAX_SECONDS else number
