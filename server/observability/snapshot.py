"""What a run is doing at a moment, as the JSON of its live page; docs/live-page.md has the schema.

What costs the store something is read once: a round that is done, and its versions and scores, stay
in memory, all but those of the newest rounds, whose figures may still change.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from featherfed.proto.peer_text import printable
from featherfed.server.errors import MAX_DETAIL
from featherfed.server.observability.log_lines import LogLines
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.rounds.transitions import Phase, Policy, RunState
from featherfed.server.storage.records import ClientRecord, VersionSummary
from featherfed.server.storage.store import Store
from featherfed.tasks.metrics import is_better, is_larger_better
from featherfed.tasks.task import Task

SCHEMA = 1
MOST_ROWS = 50
"""Refusals and versions that are shown."""
MOST_POINTS = 1000
"""Rounds that are shown; of a longer run, the newest ones and, of the others, one in so many."""
_UNSETTLED = 2
"""The newest versions: their scores may come a round later, and bytes of those who were late."""
_PHASES = {Phase.GATHERING: "waiting"}


class Moment(NamedTuple):
    """What the coordinator knows of a run at a moment; times in seconds of its clock."""

    now: float
    state: RunState
    policy: Policy
    missing: int
    """Clients that are still wanted before the round opens."""
    clients: Mapping[str, ClientRecord]
    excluded: frozenset[str]
    heard: Mapping[str, float]
    """When each client made its last call; -inf if it made none."""
    seconds: Mapping[str, float]
    """From a round's opening to a client's update, the last time."""
    health: Mapping[str, tuple[int | None, int | None]] = MappingProxyType({})
    """Temperature in degrees Celsius and battery in percent that clients told of their devices."""


class _Point(NamedTuple):
    shown: dict[str, Any]
    size: int
    digest: str
    transfers: int
    """How many models went over the link in the round, both ways."""


class Snapshots:
    """Makes the snapshots of one run; safe in several threads, one of which makes one at a time."""

    def __init__(
        self,
        store: Store,
        task: Task,
        float32_bytes: int,
        moment: Callable[[], Moment],
        log: LogLines,
        join: str,
    ) -> None:
        """`float32_bytes`: of one update without a codec; `join`: the command that joins a client.

        `moment` says where the run is.
        """
        run = store.runs.record()
        assert run is not None, "a store holds a run from its first moment"
        self._name = run.name
        self._started = _iso(run.started)
        self._store = store
        self._task = task
        self._float32_bytes = float32_bytes
        self._moment = moment
        self._log = log
        self._join = join
        self._held_out = HeldOutScores(task)
        self._lock = threading.Lock()
        self._settled: list[_Point] = []
        self._scores: dict[str, float] = {}
        self._scored = 0
        """The last round whose clients' scores were read."""
        self._refusals: tuple[int, list[dict[str, Any]]] = -1, []

    def make(self) -> dict[str, Any]:
        """Return the snapshot of now, which nobody changes; raise CannotStore or ServerError."""
        with self._lock:
            return self._make(self._moment())

    def _make(self, moment: Moment) -> dict[str, Any]:
        state, policy = moment.state, moment.policy
        points = self._points()
        newest = len(points)
        deadline = state.since + policy.deadline - moment.now
        paused = policy.paused and state.phase is Phase.GATHERING
        larger = is_larger_better(self._task.leading)
        return {
            "schema": SCHEMA,
            "run": self._name,
            "started": self._started,
            "now": _iso(moment.now),
            "phase": "paused" if paused else _PHASES.get(state.phase, str(state.phase)),
            "paused": policy.paused,
            "round": state.round,
            "rounds": policy.rounds,
            "version": newest,
            "deadline_in": max(0.0, round(deadline, 1)) if state.phase is Phase.TRAINING else None,
            "waiting_for": moment.missing,
            "join": self._join,
            "metric": {"name": self._task.leading, "larger_is_better": larger},
            "best": self._best(points),
            "bytes": self._bytes(points),
            "points": [point.shown for point in _thinned(points)],
            "clients": self._clients(moment, newest),
            "refusals": self._newest_refusals(),
            "versions": [
                {"version": number, "digest": point.digest, "size": point.size}
                for number, point in reversed(list(enumerate(points, 1))[-MOST_ROWS:])
            ],
            "log": self._log.newest_first(),
        }

    def _points(self) -> list[_Point]:
        """Return the rounds that gave a version; reads those that are not settled."""
        found = self._store.versions.summaries(len(self._settled))
        found = [summary for summary in found if summary.version]
        points = [self._point(summary) for summary in found]
        both = [*self._settled, *points]
        self._settled = both[: max(len(self._settled), len(both) - _UNSETTLED)]
        return both

    def _point(self, summary: VersionSummary) -> _Point:
        store, number = self._store, summary.version
        record, sizes = store.journal.round(number), store.ledger.round_bytes(number)
        scores = summary.scores or {}
        closed = record.opened if record.closed is None else record.closed
        shown = {
            "round": number,
            "score": _finite(scores.get(self._task.leading)),
            "loss": _finite(scores.get("loss")),
            "seconds": max(0.0, round(closed - record.opened, 3)),
            "up": sizes.up,
            "down": sizes.down,
            "discarded": store.journal.why_discarded(number),
        }
        transfers = store.journal.num_updates_of(number) + sizes.downloads
        return _Point(shown, summary.size, summary.digest.hex(), transfers)

    def _best(self, points: list[_Point]) -> dict[str, Any] | None:
        best: dict[str, Any] | None = None
        for number, point in enumerate(points, 1):
            score = point.shown["score"]
            if score is None:
                continue
            if best is None or is_better(self._task.leading, score, best["score"]):
                best = {"version": number, "score": score}
        return best

    def _bytes(self, points: list[_Point]) -> dict[str, int]:
        ledger, going_on = self._store.ledger, len(points) + 1
        totals = ledger.totals().items()
        transfers = sum(point.transfers for point in points)
        transfers += self._store.journal.num_updates_of(going_on)
        transfers += ledger.round_bytes(going_on).downloads
        return {
            "up": ledger.message_bytes("uplink"),
            "down": ledger.message_bytes("downlink"),
            "wasted": sum(size.message for (_, kind), size in totals if kind.endswith("retry")),
            "float32": transfers * self._float32_bytes,
        }

    def _clients(self, moment: Moment, newest: int) -> list[dict[str, Any]]:
        self._read_scores(newest)
        state = moment.state
        trains = state.phase is Phase.TRAINING
        cohort = frozenset(state.cohort) if trains else frozenset()
        rows = []
        for name, record in sorted(moment.clients.items()):
            heard = moment.heard.get(name, -math.inf)
            seconds = moment.seconds.get(name)
            temperature, battery = moment.health.get(name, (None, None))
            rows.append(
                {
                    "name": name,
                    "state": _state_of(name, state, cohort, moment.excluded),
                    "heard_ago": max(0.0, round(moment.now - heard, 1)) if heard >= 0 else None,
                    "examples": record.num_examples,
                    "seconds": None if seconds is None else round(seconds, 2),
                    "runtime": record.runtime or None,
                    "temperature": temperature,
                    "battery": battery,
                    "score": self._scores.get(name),
                }
            )
        return rows

    def _read_scores(self, newest: int) -> None:
        """Read how good the clients' own models were, in the rounds that were not read yet."""
        leading = self._task.leading
        for round_ in range(max(self._scored, newest - _UNSETTLED) + 1, newest + 1):
            for client, scores, after in self._store.journal.clients_scores(round_):
                found = scores or (self._held_out.scores([after]) if after else {})
                score = _finite(found.get(leading))
                if score is not None:
                    self._scores[client] = score
        self._scored = newest

    def _newest_refusals(self) -> list[dict[str, Any]]:
        refusals = self._store.refusals
        writes = refusals.writes  # before the rows: a write meanwhile is read the next time
        if self._refusals[0] != writes:
            rows = [
                {
                    "time": _iso(row.last),
                    "client": printable(row.client, MAX_DETAIL),  # older servers stored any
                    "reason": row.reason,
                    "text": printable(row.detail) + (f" ({row.count} times)" * (row.count > 1)),
                    "round": row.round,
                }
                for row in refusals.newest(MOST_ROWS)
            ]
            self._refusals = writes, rows
        return self._refusals[1]


def steady(snapshot: Mapping[str, Any]) -> Any:
    """Return what of a snapshot does not change by time alone, to be compared with another's."""
    clients = [
        tuple(value for key, value in client.items() if key != "heard_ago")
        for client in snapshot["clients"]
    ]
    return [
        clients if key == "clients" else value
        for key, value in snapshot.items()
        if key not in ("now", "deadline_in")
    ]


def _state_of(name: str, state: RunState, cohort: frozenset[str], excluded: frozenset[str]) -> str:
    if name in excluded:
        return "excluded"
    if name in state.lost:
        return "lost"
    if name in state.late:
        return "late"
    if name not in cohort:
        return "present"
    return "reported" if name in state.reported else "training"


def _thinned(points: list[_Point]) -> list[_Point]:
    """Return at most MOST_POINTS of some points: the newest half, and others evenly."""
    if len(points) <= MOST_POINTS:
        return points
    half = MOST_POINTS // 2
    step = math.ceil((len(points) - half) / half)
    return [*points[:-half:step], *points[-half:]]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
