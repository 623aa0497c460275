"""Tells trackers of experiments how a run goes, so that none of them can harm or delay it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from featherfed.api.trackers.hook import RoundFacts, Tracker
from featherfed.compression.exchange.manifest import Manifest
from featherfed.server.errors import CannotStore
from featherfed.server.observability import metrics_json
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.tasks.task import Task

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
"""Time that all trackers together get at the end to send what they hold."""
MAX_WAITING = 10_000
"""Calls that wait at most for a tracker; more of them are left out."""


class Trackers:
    """Tells trackers of each new version of a run, and of each version's scores once known."""

    def __init__(
        self,
        trackers: Sequence[Tracker],
        store: Store,
        settings: Settings,
        task: Task,
        manifest: Manifest,
    ) -> None:
        """Begin with the version after the newest that `store` holds."""
        self._store = store
        self._lock = threading.Lock()
        newest, evaluated = store.versions.newest(), store.versions.newest_evaluated()
        self._told = newest.version
        self._scored = -1 if evaluated is None else evaluated.version
        self._made_at: float | None = None
        head = metrics_json.head(store, settings, task, manifest, {})
        values = {
            "dataset": head["dataset"] or "",
            "num_parameters": head["num_parameters"],
            **head["settings"],
        }
        self._workers = [_Worker(tracker) for tracker in trackers]
        self._tell("start", head["run"], values)

    def update(self) -> None:
        """Tell what is new in the store; returns at once, and raises only what the store does."""
        if not self._workers:
            return
        # Counts of bytes that cannot be written now are told once they are.
        with self._lock, suppress(CannotStore):
            newest = self._store.versions.newest().version
            for version in range(self._told + 1, newest + 1):
                facts = self._facts(version, version == newest)
                self._tell("on_round", facts)
                self._told, self._made_at = version, facts.made
            self._tell_scores(newest)

    def close(self, finished: bool) -> None:
        """Tell what is left, and wait CLOSE_SECONDS at most until the trackers have sent it."""
        self._tell("end", finished)
        until = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.close(until)

    def _tell_scores(self, newest: int) -> None:
        for version in range(self._scored + 1, newest + 1):
            scores = self._store.versions.get(version).scores
            if scores:
                self._tell("on_scores", version, dict(scores))
                self._scored = version

    def _facts(self, version: int, is_newest: bool) -> RoundFacts:
        store = self._store
        round_ = store.journal.round(version)
        closed = round_.opened if round_.closed is None else round_.closed
        made = time.time() if is_newest else store.journal.round(version + 1).opened
        entries = store.ledger.of_round(version)
        evaluated = store.versions.newest_evaluated()
        return RoundFacts(
            version=version,
            began=round_.opened if self._made_at is None else min(self._made_at, round_.opened),
            opened=round_.opened,
            closed=closed,
            made=max(made, closed),
            up=sum(e.message_bytes for e in entries if e.direction == "uplink"),
            down=sum(e.message_bytes for e in entries if e.direction == "downlink"),
            wasted=sum(e.message_bytes for e in entries if e.kind.endswith("retry")),
            clients=len(store.journal.reporters(version)),
            discarded=store.journal.discarded().get(version),
            scored=None if evaluated is None else evaluated.version,
            scores=dict((evaluated and evaluated.scores) or {}),
        )

    def _tell(self, method: str, *arguments: Any) -> None:
        for worker in self._workers:
            worker.put(method, *arguments)


class _Worker:
    """Calls one tracker in a thread of its own, until it fails."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._name = type(tracker).__name__
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def put(self, method: str, *arguments: Any) -> None:
        """Call a method of the tracker soon."""
        try:
            self._calls.put_nowait((method, arguments))
        except queue.Full:
            log.debug("%s is behind by %d calls; one is left out", self._name, MAX_WAITING)

    def close(self, until: float) -> None:
        """Wait until all calls are done, at most until a time of the monotonic clock."""
        try:
            self._calls.put_nowait(None)
        except queue.Full:
            log.debug("%s is not waited for", self._name)
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            log.warning("%s has not taken all of the run; it is not waited for", self._name)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            method, arguments = call
            try:
                _method(self._tracker, method)(*arguments)
            except Exception as error:  # of any kind, as a tracker is anyone's code
                log.warning(
                    "%s fails, and is told nothing more of this run: %s: %s",
                    self._name, type(error).__name__, error,
                )  # fmt: skip
                log.debug("it failed here", exc_info=True)
                return


def _method(tracker: Tracker, name: str) -> Callable[..., None]:
    found: Callable[..., None] = getattr(tracker, name)
    return found
