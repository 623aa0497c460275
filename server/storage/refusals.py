"""Refusals, counted by round, client and reason: a million calls in vain are one row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from featherfed.server.errors import CannotStore

STRANGER = "(stranger)"
"""Who has not proved a name; no client can be called so."""
OTHERS = "(others)"
"""Takes what comes once there are MAX_ROWS."""
MAX_ROWS = 10_000
FLUSH_SECONDS = 1.0

_ADD = (
    "INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (round, client, reason) "
    "DO UPDATE SET count = count + excluded.count, detail = excluded.detail, last = excluded.last"
)


@dataclass
class _Waiting:
    count: int
    detail: str
    first: float
    last: float


class Refusals:
    """The table of refusals, written at most once a second: no peer can keep the disk busy."""

    def __init__(
        self,
        run: Callable[..., list[Any]],
        transaction: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Write with `run(sql, *values)` of a store."""
        self._run = run
        self._transaction = transaction
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, str, str], _Waiting] = {}
        self._known = {tuple(row) for row in run("SELECT round, client, reason FROM refused")}
        self._flushed = float("-inf")

    def add(self, round_: int, client: str, reason: str, detail: str, now: float) -> bool:
        """Count a refusal; return whether it is the first of its round, client and reason."""
        with self._lock:
            key = round_, client, reason
            if key not in self._known and len(self._known) >= MAX_ROWS:
                key = round_, OTHERS, reason
            first = key not in self._known
            self._known.add(key)
            waiting = self._waiting.setdefault(key, _Waiting(0, detail, now, now))
            waiting.count, waiting.detail, waiting.last = waiting.count + 1, detail, now
            due = time.monotonic() - self._flushed >= FLUSH_SECONDS
        if due:
            self.flush()
        return first

    def add_at_once(self, round_: int, client: str, reason: str, detail: str, now: float) -> None:
        """Count a refusal as part of the transaction under way, whatever becomes of that."""
        self._run(_ADD, round_, client, reason, 1, detail, now, now)

    def flush(self) -> None:
        """Write what waits; a disk that takes nothing makes it wait longer."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            self._flushed = time.monotonic()
        if not waiting:
            return
        try:
            with self._transaction():
                for key, item in waiting.items():
                    values = item.count, item.detail, item.first, item.last
                    self._run(_ADD, *key, *values)
        except CannotStore:
            with self._lock:
                for key, item in self._waiting.items():
                    if key in waiting:
                        item.count += waiting[key].count
                        item.first = waiting[key].first
                self._waiting = {**waiting, **self._waiting}
