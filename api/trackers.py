"""Tells trackers of experiments how a run goes, so that none of them can harm or delay it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from featherfed.api.extras import how_to_install
from featherfed.api.tracker import RoundFacts, Tracker
from featherfed.compression.exchange.manifest import Manifest
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.observability import metrics_json
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.tasks.task import Task

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
"""Time that all trackers together get at the end to send what they hold."""
MAX_WAITING = 10_000
"""Calls that wait at most for a tracker; more of them are left out."""
COLLECTOR = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables of the environment that name a collector of OpenTelemetry."""


class _Kind(NamedTuple):
    package: str
    """The module that must be installed."""
    adapter: str
    """Our module with the class."""
    name: str


KINDS = {
    "tensorboard": _Kind("tensorboardX", "tensorboard_tracker", "TensorBoardTracker"),
    "mlflow": _Kind("mlflow", "mlflow_tracker", "MlflowTracker"),
    "wandb": _Kind("wandb", "wandb_tracker", "WandbTracker"),
    "otel": _Kind("opentelemetry.exporter.otlp.proto.http", "otel_tracker", "OtelTracker"),
}
"""The part of a tracker's text before the colon -> what it needs and which class it is."""


def check_trackers(texts: Sequence[str]) -> None:
    """Raise ServerError for a tracker that is unknown, or whose package is not installed."""
    for text in texts:
        kind = text.partition(":")[0]
        if kind not in KINDS:
            raise ServerError(f"no tracker {text!r}; use {', '.join(KINDS)}, with :TARGET or alone")
        if not _is_installed(KINDS[kind].package):
            raise ServerError(
                f"the tracker {text!r} needs a package that is not installed: "
                f"{how_to_install(KINDS[kind].package)}"
            )


def make_trackers(chosen: Sequence[str | Tracker], without: Sequence[str] = ()) -> list[Tracker]:
    """Return trackers, those that are texts made of them; raise as `check_trackers` does.

    `without`: kinds that follow by real times, and so no simulation.
    """
    texts = [one for one in chosen if isinstance(one, str)]
    for text in texts:
        if text.partition(":")[0] in without:
            raise ServerError(f"the tracker {text!r} follows times, and here none passes; drop it")
    check_trackers(texts)
    return [_made(one) if isinstance(one, str) else one for one in chosen]


def collector_tracker(texts: Sequence[str]) -> list[str]:
    """Return the tracker of OpenTelemetry if the environment names a collector for it."""
    named = next((name for name in COLLECTOR if os.environ.get(name)), None)
    if named is None or any(text.partition(":")[0] == "otel" for text in texts):
        return []
    try:
        check_trackers(["otel"])
    except ServerError as error:
        log.warning("%s is set, and no traces are sent: %s", named, error)
        return []
    return ["otel"]


def _made(text: str) -> Tracker:
    name, _, target = text.partition(":")
    kind = KINDS[name]
    module = importlib.import_module(f"featherfed.api.{kind.adapter}")
    made: Tracker = getattr(module, kind.name)(target)
    return made


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False


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
