"""Build a server from real parts and run it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import uvloop

from featherfed.api.announce import Announcement, is_local_only
from featherfed.api.artifacts import Artifacts
from featherfed.api.build import (
    KerasEvaluator,
    Served,
    build_model,
    load_evaluation_data,
    run_task,
)
from featherfed.api.control import Observer, Outcome
from featherfed.api.export import export_version
from featherfed.api.front_end import StandbyCalls
from featherfed.api.live_page import LivePage
from featherfed.api.model_check import check_first_version, warn_of_missing_files
from featherfed.api.quantizer import KerasQuantizer
from featherfed.api.releases import build_releases
from featherfed.api.server_status import ServerStatus, join_line
from featherfed.api.signals import stop_on_signal
from featherfed.api.tracker_choice import collector_tracker, make_trackers
from featherfed.api.trackers.following import Trackers
from featherfed.api.trackers.hook import Tracker
from featherfed.api.training_step import offered_step
from featherfed.models.export import KINDS
from featherfed.models.tensorflow_lock import TENSORFLOW_LOCK
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import CannotListen, Deposed, ServerError
from featherfed.server.loop import serve
from featherfed.server.rounds.clock import SteadyClock
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.postgres_address import (
    Leader,
    PostgresAddress,
    check_not_in_postgres,
    write_address,
)
from featherfed.server.storage.store import Store
from featherfed.server.transfers.releases import Releases

log = logging.getLogger(__name__)

FINISHED, STOPPED, NO_PROGRESS = Outcome.FINISHED, Outcome.STOPPED, Outcome.NO_PROGRESS

PORT_SECONDS = 30.0
"""How long a server that has taken over waits for the port of the one before."""
MAX_FILES = 65_536
"""Most open files that are asked for; each client's connection is one."""


def serve_run(settings: Settings, observer: Observer | None = None) -> Outcome:
    """Serve the run that `settings` describe until its end, or until it is told to stop."""
    observer = observer or Observer()
    chosen = [*settings.server.trackers, *observer.trackers]
    chosen += collector_tracker([one for one in chosen if isinstance(one, str)])
    tracked = make_trackers(chosen)
    _allow_many_files()
    output = Path(settings.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"cannot write to {output}: {error.strerror}") from error
    if settings.server.postgres is None:
        check_not_in_postgres(output)
        page = LivePage(settings)  # fails early if its address is taken
        with page.prepared(), closing(Store(output / "run.db")) as store:  # or the folder unusable
            return _serve_stored(settings, store, _load(settings), page, tracked, observer)
    address = PostgresAddress(settings.server.postgres, settings.server.postgres_schema)
    return _serve_in_postgres(settings, address, tracked, lambda: make_trackers(chosen), observer)


class _Stopped(Exception):
    """A standby is to end."""


def _serve_in_postgres(
    settings: Settings,
    address: PostgresAddress,
    tracked: Sequence[Tracker],
    track_again: Callable[[], Sequence[Tracker]],
    observer: Observer,
) -> Outcome:
    """Serve a run whenever no other server does, until its end, or until it is told to stop."""
    output = Path(settings.output)
    write_address(output, address)
    served = _load(settings)  # before it waits for the run, so that it takes over at once
    until = math.inf
    while True:
        front = StandbyCalls(settings)

        def standby(leader: Leader | None, front: StandbyCalls = front) -> None:
            if observer.switch.pressed:
                raise _Stopped
            front.follow(leader)

        try:
            with closing(front):
                store = Store(output / "run.db", postgres=address, standby=standby)
            with closing(store):
                # It listens where the front end did.
                listening = settings.server.model_copy(update={"port": front.port})
                settings = settings.model_copy(update={"server": listening})
                page = LivePage(settings)
                with page.prepared():
                    return _serve_stored(settings, store, served, page, tracked, observer)
        except _Stopped:
            return STOPPED
        except Deposed as deposed:
            log.warning("%s", deposed, extra={"event": "deposed"})
            until = math.inf
        except CannotListen as error:  # the server before may be on this machine, about to end
            until = min(until, time.monotonic() + PORT_SECONDS)
            if time.monotonic() >= until:
                raise
            log.warning("%s", error, extra={"event": "port_in_use"})
            time.sleep(1)
        tracked = track_again()


def _serve_stored(
    settings: Settings,
    store: Store,
    served: Served,
    page: LivePage,
    tracked: Sequence[Tracker],
    observer: Observer,
) -> Outcome:
    """Serve the run in a store until its end, or until it is told to stop; raise Deposed."""
    output, lock = Path(settings.output), TENSORFLOW_LOCK
    with lock:
        if store.runs.record() is None:
            check_first_version(served, settings.seed)
        warn_of_missing_files(served, settings.evaluation.by_clients_int8)
        coordinator = _coordinator(settings, store, served, lock)
    artifacts = Artifacts(output, store, coordinator, served)
    releases = build_releases(output, coordinator, served, lock)
    trackers = Trackers(
        tracked, store, coordinator.settings, coordinator.task, coordinator.manifest
    )
    finished = False
    try:
        running = _until_signal(coordinator, artifacts, releases, lock, observer, page, trackers)
        finished = uvloop.run(running)
        trackers.update()
        return _exit_status(finished, coordinator.status())
    finally:
        trackers.close(finished)
        releases.close()


def _load(settings: Settings) -> Served:
    """Return what the run needs besides its store: model, and data if the server has any."""
    log.info("making the model, and checking whether it can be used")
    with TENSORFLOW_LOCK:
        test, calibration = load_evaluation_data(settings)
        task = run_task(settings, test)
        if test is not None and calibration is not None:
            test, calibration = test.fit(task), calibration.fit(task)
        return Served(build_model(settings, task), test, calibration)


def advertised(settings: Settings, address: str) -> str:
    """Return where other servers of the run reach one that listens at `address`, HOST:PORT."""
    host, _, port = address.rpartition(":")
    listens_everywhere = host in ("0.0.0.0", "[::]")
    return settings.server.advertise or (
        f"{socket.gethostname()}:{port}" if listens_everywhere else address
    )


def _exit_status(finished: bool, status: pb.StatusReply) -> Outcome:
    """Return how the server ended; say so if rounds of a finished run were discarded."""
    if not finished:
        return STOPPED
    if status.discarded_rounds:
        log.warning(
            "%d of %d rounds were discarded, because their models could not be used; metrics.json "
            "says why, and `refused` there whose updates were too large",
            status.discarded_rounds, status.rounds,
        )  # fmt: skip
    return NO_PROGRESS if status.discarded_rounds == status.rounds else FINISHED


def _allow_many_files() -> None:
    """Raise this process's limit of open files, which is often 1024, to at most MAX_FILES."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _until_signal(
    coordinator: Coordinator,
    artifacts: Artifacts,
    releases: Releases,
    lock: threading.Lock,
    observer: Observer,
    page: LivePage,
    trackers: Trackers,
) -> bool:
    output = Path(coordinator.settings.output)

    def export() -> Path:
        with lock:
            return export_version(output, None, False, None, KINDS)

    def finish() -> None:
        with lock:
            artifacts.finish()

    stop = asyncio.Event()
    stop_on_signal(stop)
    with contextlib.ExitStack() as until_the_end, observer.switch.connected(stop):

        def on_round() -> None:
            artifacts.write_metrics()
            versions = coordinator.store.versions
            evaluated = versions.newest_evaluated()
            scores = None if evaluated is None else evaluated.scores
            observer.on_round(versions.newest_scores().version, scores or {})
            trackers.update()

        def on_listening(address: str) -> None:
            # The page first: whoever waits for the server's address finds the page's as well.
            served = page.served(coordinator, address, artifacts.facts(), export)
            until_the_end.enter_context(served)
            artifacts.write_address(address)
            coordinator.store.advertise(advertised(coordinator.settings, address))
            observer.on_listening(address)
            status = ServerStatus(coordinator, join_line(coordinator.settings, address))
            until_the_end.callback(asyncio.create_task(status.tell()).cancel)
            settings = coordinator.settings.server
            if not is_local_only(settings.host) if settings.announce is None else settings.announce:
                port = int(address.rpartition(":")[2])
                announcement = Announcement(coordinator.plan.run, settings.host, port)
                announcement.start()
                until_the_end.callback(announcement.close)

        return await serve(
            coordinator,
            releases,
            on_listening=on_listening,
            on_round=on_round,
            on_finished=finish,
            stop=stop,
        )


def _coordinator(
    settings: Settings, store: Store, served: Served, lock: threading.Lock
) -> Coordinator:
    model, test = served.model, served.test
    plan = make_plan(settings, model.task, model.model_json, model.manifest)
    made: list[Coordinator] = []
    quantizer = KerasQuantizer(model, lock, lambda: made[0].scaling())
    coordinator = Coordinator(
        settings,
        store,
        plan,
        model.manifest,
        model.task,
        None if test is None else KerasEvaluator(model, test, lock),
        SteadyClock(),
        first_weights=model.first_weights(),
        step=offered_step(model, settings),
        quantizer=quantizer,
    )
    made.append(coordinator)
    return coordinator
