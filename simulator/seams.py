"""Where the product meets clock, chance, threads and gRPC: replaced for a run, then put back."""

from __future__ import annotations

import functools
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import greenlet
import grpc.aio
import numpy.random  # noqa: F401  # it keeps functions of `secrets`: the real ones, if it is first

from featherfed.compression import files
from featherfed.edge_client import (
    grpc_connection,
    grpc_transport,
    heartbeat,
    partial_download,
    state_directory,
    update_sender,
)
from featherfed.server import loop
from featherfed.server.access import limits
from featherfed.server.coordinator import updates
from featherfed.server.rpc import streams
from featherfed.server.storage import sqlite
from featherfed.server.transfers import uploads
from featherfed.simulator.scheduler import START, Process, Scheduler, Waiter

LONGEST_DECODING = 0.05
"""Most seconds that decoding an update takes."""


class _Event:
    """`threading.Event` for threads of the simulation."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiter: Waiter | None = None

    def set(self) -> None:
        self._set = True
        if self._waiter is not None:
            self._waiter.set()

    def wait(self, seconds: float | None = None) -> bool:
        if not self._set:
            self._waiter = Waiter(self._scheduler)
            self._waiter.wait(seconds)
            self._waiter = None
        return self._set


def _threading(scheduler: Scheduler) -> SimpleNamespace:
    """Return what stands in for the module `threading`."""

    class Thread:
        def __init__(self, target: Callable[..., None], args: tuple[Any, ...], **_: object) -> None:
            self._work = functools.partial(target, *args)

        def start(self) -> None:
            process = scheduler.process
            assert process is not None
            process.spawn(self._work)

    def current_thread() -> SimpleNamespace:
        thread = greenlet.getcurrent()
        return SimpleNamespace(is_alive=lambda: not thread.dead)

    return SimpleNamespace(
        Thread=Thread, Event=lambda: _Event(scheduler), current_thread=current_thread
    )


@contextmanager
def simulated_surroundings(
    scheduler: Scheduler,
    seed: int,
    chunk: int,
    make_server: Callable[..., Any],
    make_channel: Callable[..., Any],
) -> Iterator[None]:
    """Let clock, chance, threads, gRPC and chunk sizes be those of the simulation.

    `make_server` takes the arguments of `grpc.aio.server`, `make_channel` an address.
    """
    draw = random.Random(f"{seed}: secrets")
    pauses = random.Random(f"{seed}: decoding")
    norms = updates.Updates._norms

    def slow_decode(*args: Any) -> Any:
        scheduler.pause(LONGEST_DECODING * pauses.random())
        return norms(*args)

    def wall() -> float:
        process: Process | None = scheduler.process
        return scheduler.now + (process.wall_offset if process is not None else 0.0)

    def monotonic() -> float:
        return scheduler.now - START + 1000

    def lock_file(path: Path) -> IO[bytes]:
        file = files.lock_file(path)
        process: Process | None = scheduler.process
        if process is not None:
            process.on_death.append(file.close)
        return file

    nothing = SimpleNamespace(
        collect=lambda: 0, freeze=lambda: None, unfreeze=lambda: None,
        get_threshold=lambda: (), set_threshold=lambda *_: None,
    )  # fmt: skip
    replaced: list[tuple[Any, str, Any]] = [
        (time, "time", wall),
        (time, "monotonic", monotonic),
        (time, "sleep", scheduler.pause),
        (secrets, "randbits", draw.getrandbits),
        (secrets, "token_hex", lambda size=32: draw.randbytes(size).hex()),
        (sqlite, "lock_file", lock_file),
        (state_directory, "lock_file", lock_file),
        (heartbeat, "threading", _threading(scheduler)),
        (limits, "Rate", functools.partial(limits.Rate, clock=monotonic)),
        (updates.Updates, "_norms", slow_decode),  # where no lock is held: others go on
        (loop, "gc", nothing),  # takes longer than a round
        (grpc.aio, "server", make_server),
        (grpc_connection, "_channel", make_channel),
        (grpc_transport, "CHUNK_BYTES", chunk),
        (grpc_transport, "RETRY_CHUNK_BYTES", max(1, chunk // 2)),
        (update_sender, "CHUNK_BYTES", chunk),
        (partial_download, "WRITE_BYTES", 4 * chunk),
        (streams, "CHUNK_BYTES", chunk),
        (streams, "COUNTED_CHUNK_BYTES", 4 * chunk),
        (uploads, "STORED_CHUNK_BYTES", 3 * chunk),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in replaced]
    state = random.getstate()
    random.seed(f"{seed}: clients")
    try:
        for place, name, value in replaced:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        random.setstate(state)
