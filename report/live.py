"""Says in words what the snapshot of a running server holds: its state, clients, refusals, log."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from featherfed.report.metric import value_text
from featherfed.report.schema import printable
from featherfed.report.summary import NONE, bytes_text, count_text, seconds_text

Snapshot = Mapping[str, Any]
"""What GET /api/run answers."""

_PHASES = {
    "waiting": "Waiting for clients",
    "training": "Clients train",
    "aggregating": "Making the next version",
    "finished": "Finished",
    "paused": "Paused",
}
_STATES = ("training", "reported", "present", "late", "lost", "excluded")
_LEVELS = {"WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}
_UNKNOWN: Mapping[str, str] = {
    "kind": "", "state": "not here", "heard": NONE, "seconds": NONE, "speed": NONE,
    "temperature": NONE, "battery": NONE, "score": NONE,
}  # fmt: skip


def header(live: Snapshot) -> dict[str, Any]:
    """Return the run's phase, facts beside it, its deadline, and how a client joins."""
    phase = str(live.get("phase") or "")
    deadline = live.get("deadline_in")
    return {
        "phase": _PHASES.get(phase, printable(phase)),
        "facts": list(_facts(live)),
        "deadline": None if deadline is None else seconds_text(max(0.0, deadline)),
        "deadline_in": deadline,
        "join": printable(live.get("join") or ""),
    }


def _facts(live: Snapshot) -> list[str]:
    facts = []
    if live.get("round") is not None:
        facts.append(f"round {live['round']} of {live.get('rounds') or NONE}")
    if live.get("version") is not None:
        facts.append(f"version {live['version']}")
    if waiting := live.get("waiting_for"):
        facts.append(f"{waiting} more client{'s' * (waiting != 1)} wanted")
    if best := live.get("best"):
        name = printable((live.get("metric") or {}).get("name") or "score")
        score = value_text(name, best["score"])
        facts.append(f"best {name} so far {score}, version {best['version']}")
    if wasted := (live.get("bytes") or {}).get("wasted"):
        facts.append(f"{bytes_text(wasted)} sent in vain")
    return facts


def all_bytes(live: Snapshot) -> tuple[int, int] | None:
    """Return the bytes of all messages so far, and as float32; None if that is unknown."""
    told = live.get("bytes") or {}
    if any(told.get(key) is None for key in ("up", "down", "float32")):
        return None
    return told["up"] + told["down"], told["float32"]


def clients(live: Snapshot, metric: str) -> Mapping[str, Mapping[str, str]]:
    """Return the cells of each client by name; of one that the snapshot lacks, dashes."""
    found: dict[str, Mapping[str, str]] = defaultdict(lambda: _UNKNOWN)
    for entry in live.get("clients") or ():
        found[printable(str(entry["name"]))] = _client(entry, metric)
    return found


def _client(entry: Mapping[str, Any], metric: str) -> dict[str, str]:
    state = str(entry.get("state") or "")
    seconds, examples = entry.get("seconds"), entry.get("examples")
    speed = examples / seconds if examples and seconds else None
    heard = entry.get("heard_ago")
    return {
        "kind": state if state in _STATES else "",
        "state": printable(state) or NONE,
        "heard": NONE if heard is None else f"{seconds_text(heard)} ago",
        "seconds": seconds_text(seconds),
        "speed": count_text(speed),
        "temperature": _number(entry.get("temperature"), "\N{DEGREE SIGN}C"),
        "battery": _number(entry.get("battery"), "%"),
        "score": value_text(metric, entry.get("score")),
    }


def _number(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.0f} {unit}"


def client_rows(live: Snapshot) -> dict[str, dict[str, str]]:
    """Return what the clients table says of those that no round mentions yet, by name."""
    return {
        printable(str(entry["name"])): {
            "client": printable(str(entry["name"])),
            "runtime": printable(str(entry.get("runtime") or NONE)),
            "examples": count_text(entry.get("examples")),
            "counted": "0",
            "missed": "0",
            "refused": "0",
        }
        for entry in live.get("clients") or ()
    }


def refusals(live: Snapshot) -> list[dict[str, str]]:
    """Return the newest refusals in plain words."""
    return [
        {
            "time": _time(entry.get("time")),
            **{key: _text(entry.get(key)) for key in ("client", "reason", "text")},
        }
        for entry in live.get("refusals") or ()
    ]


def sizes(live: Snapshot) -> dict[int, int]:
    """Return the bytes of the newest versions' broadcasts."""
    entries: Sequence[Mapping[str, Any]] = live.get("versions") or ()
    return {e["version"]: e["size"] for e in entries if e.get("size") is not None}


def log(live: Snapshot) -> list[dict[str, str]]:
    """Return the newest lines of the server's log."""
    return [
        {
            "time": _time(entry.get("time")),
            "level": _text(entry.get("level")),
            "kind": _LEVELS.get(str(entry.get("level")).upper(), "info"),
            "text": _text(entry.get("text")),
        }
        for entry in live.get("log") or ()
    ]


def _text(value: object) -> str:
    return NONE if value is None else printable(str(value))


def _time(value: object) -> str:
    """Return a time of ISO format, or in seconds since the epoch, as the time of day in UTC."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC).strftime("%H:%M:%S")
        return datetime.fromisoformat(str(value)).strftime("%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return _text(value)
