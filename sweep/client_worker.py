"""A worker process of a simulated run: sessions of some clients, whose calls go through a pipe."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.trainer import Trainer
from featherfed.proto import federation_pb2 as pb
from featherfed.sweep.memory_state import HeldModels, MemoryState
from featherfed.sweep.sessions import run_sessions
from featherfed.sweep.simulated_transport import SimulatedTransport

MakeClientTrainer = Callable[[str, pb.Plan, Manifest, bytes | None], Trainer]
"""(client name, plan, manifest, training step) -> that client's `Trainer`."""


@dataclass(frozen=True)
class Share:
    """The clients of one worker; all of it can be pickled."""

    profiles: tuple[Profile, ...]
    make_trainer: MakeClientTrainer
    scratch: Path


@dataclass(frozen=True)
class Call:
    """A client's call of a method of its transport."""

    client: str
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Ended:
    """All clients of the worker have ended, with models of these digests."""

    digests: tuple[bytes, ...]


def work(share: Share, pipe: Connection) -> None:
    """Run the clients of a share to the end.

    Sends a `Call` for each call, then `Ended` or an exception; receives (client, reply), where a
    reply that is an exception is raised. Ends at once when the other side of the pipe is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one gets it too
    lock = threading.Lock()
    shared: HeldModels = WeakValueDictionary()
    replies: dict[str, SimpleQueue[Any]] = {p.name: SimpleQueue() for p in share.profiles}
    threading.Thread(target=_receive, args=(pipe, replies), daemon=True).start()
    sessions = [
        Session(
            profile,
            PipeTransport(profile.name, pipe, replies[profile.name], lock),
            partial(share.make_trainer, profile.name),
            partial(MemoryState, shared, share.scratch / profile.name),
        )
        for profile in share.profiles
    ]
    held = run_sessions(sessions, lock, lambda error: pipe.send(_sendable(error)))
    pipe.send(Ended(tuple(model.digest for model in held)))


def _receive(pipe: Connection, replies: dict[str, SimpleQueue[Any]]) -> None:
    """Hand out replies until the process that started this one has died, or has given up."""
    try:
        while True:
            client, reply = pipe.recv()
            replies[client].put(reply)
    except (EOFError, OSError):
        os._exit(1)


def _sendable(error: BaseException) -> Exception:
    """Return an error that survives a pipe, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    copy: object = None
    with suppress(Exception):  # of whatever kind; pickling runs the error's own code
        copy = pickle.loads(pickle.dumps(error))
    if not isinstance(copy, Exception):
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"In a worker process:\n{text}")
    return copy


class PipeTransport(SimulatedTransport):
    """A client's transport that calls the server's parts in the process that started this one."""

    def __init__(
        self, client: str, pipe: Connection, replies: SimpleQueue[Any], lock: threading.Lock
    ) -> None:
        """`lock`: held by whoever calls; others may have it while the reply is awaited."""
        self._client = client
        self._pipe = pipe
        self._replies = replies
        self._lock = lock

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pipe.send(Call(self._client, method, arguments))
        self._lock.release()
        try:
            reply = self._replies.get()
        finally:
            self._lock.acquire()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def get_task(self, client: str) -> pb.GetTaskReply:
        """Return what the run learns."""
        reply: pb.GetTaskReply = self._call("get_task", client)
        return reply

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Join; raise Rejected if refused."""
        reply: pb.JoinReply = self._call("join", request)
        return reply

    def next_task(self, session: int, has_scaling: bool = False) -> pb.NextTaskReply:
        """Return the next task, however long it takes to come."""
        reply: pb.NextTaskReply = self._call("next_task", session, has_scaling)
        return reply

    def fetch_model(self, request: pb.FetchModelRequest, limit: int) -> tuple[list[pb.Link], bytes]:
        """Return links and payloads, counted as one message."""
        reply: tuple[list[pb.Link], bytes] = self._call("fetch_model", request, limit)
        return reply

    def fetch_step(self, session: int, step: pb.Step) -> bytes:
        """Return the exported training step, counted as one message."""
        reply: bytes = self._call("fetch_step", session, step)
        return reply

    def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        """Send an update, counted as one message."""
        reply: pb.SubmitReply = self._call("submit_update", header, payload)
        return reply

    def report_evaluation(self, report: pb.EvaluationReport) -> None:
        """Tell how good the final model is; raise Rejected if refused."""
        self._call("report_evaluation", report)
