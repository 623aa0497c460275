"""The way of an update and of a broadcast through the rooms, as calls of a real round.

`PYTHONPATH=tests python tests/support/traces.py` prints both pictures of docs/design.md. Three
clients take part in one round over gRPC; a profile function notes the calls from one room into
another, and UPDATE and BROADCAST choose which of them are drawn.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from support.federation import Federation, settings
from support.rooms import FILE_ROOMS, file_of, room_of

CLIENTS = 3
"""As many as it takes for updates to be sketched, and so to be forwarded."""


class Arrow(NamedTuple):
    """A call of `name` in the room `callee`, made in the room `caller`."""

    caller: str
    callee: str
    name: str


UPDATE = {
    ("edge_client", "FederationService.SubmitUpdate"),
    ("server/rpc", "Uploads.receive"),
    ("server/transfers", "Updates.max_bytes"),
    ("server/transfers", "Updates.expects"),
    ("server/transfers", "Updates.decode"),
    ("server/transfers", "GroupCommit.run"),
    ("server/storage", "Updates.accept"),
    ("server/coordinator", "DecodedUpdates.receive"),
    ("server/coordinator", "changed_weights"),
    ("server/coordinator", "update_norms"),
    ("server/coordinator", "Journal.add_update"),
    ("server/coordinator", "Ledger.count"),
    ("server/rpc", "SubmitReply"),
}
"""What is drawn between a client's `submit_update` and its return: (caller, name)."""

BROADCAST = {
    ("server/loop", "Coordinator.aggregate"),
    ("server/coordinator", "AggregationStrategy.weigh"),
    ("server/coordinator", "Journal.updates"),
    ("server/coordinator", "Average.add"),
    ("server/coordinator", "BundleBuilder.add"),
    ("server/coordinator", "next_version"),
    ("server/aggregation", "encode_update"),
    ("server/aggregation", "apply_update"),
    ("server/coordinator", "Versions.add"),
    ("edge_client", "FederationService.FetchModel"),
    ("server/rpc", "GroupCommit.run"),
    ("server/storage", "Deliveries.deliver"),
    ("server/transfers", "Versions.after"),
    ("server/rpc", "ChunkSender.write"),
    ("edge_client", "average"),
    ("edge_client", "apply_update"),
}
"""What is drawn from a round's aggregation until the first client holds the new version."""

LINK = {
    "FederationService.SubmitUpdate": ("edge_client", "server/rpc"),
    "FederationService.FetchModel": ("edge_client", "server/rpc"),
    "ChunkSender.write": ("server/rpc", "edge_client"),
}
"""Calls that pass over the link, where no stack shows who is at the other end."""

ORDER = (
    "edge_client",
    "server/rpc",
    "server/transfers",
    "server/loop",
    "server/coordinator",
    "server/aggregation",
    "server/storage",
    "compression/exchange",
)
"""The rooms from left to right."""

_room: ContextVar[str | None] = ContextVar("room", default=None)


class Recorder:
    """Notes the first occurrence of every call between rooms, in all threads, in two stretches."""

    def __init__(self) -> None:
        self.update: list[Arrow] = []
        self.broadcast: list[Arrow] = []
        self._open: list[Arrow] | None = None
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        """Follow a call or return; a function for `threading.setprofile`."""
        room = _room_of(frame)
        if room is None or event not in ("call", "return"):
            return
        name = frame.f_code.co_qualname
        caller = _room_below(frame)
        if event == "call":
            self._begin(name)
            self._note(Arrow(*LINK[name], name) if name in LINK else Arrow(caller, room, name))
            _room.set(room)
        else:
            self._end(name, result)
            _room.set(caller)

    def _begin(self, name: str) -> None:
        if name == "GrpcTransport.submit_update" and not self.update:
            self._open = self.update
        if name == "Coordinator.aggregate":
            self._open = self.broadcast

    def _end(self, name: str, result: Any) -> None:
        if self._open is self.update and name == "GrpcTransport.submit_update":
            self._note(Arrow("server/rpc", "edge_client", type(result).__name__))
            self._open = None
        if self._open is self.broadcast and name == "ModelSync.catch_up":
            self._open = None

    def _note(self, arrow: Arrow) -> None:
        if arrow.caller == arrow.callee:
            return
        with self._lock:
            arrows = self._open
            if arrows is not None and arrow not in arrows:
                arrows.append(arrow)


def _room_of(frame: FrameType) -> str | None:
    """Return the room that a function is in, None if it is not ours."""
    return _room_of_module(frame.f_globals.get("__name__", ""))


@cache
def _room_of_module(name: str) -> str | None:
    file = file_of(name)
    return None if file is None else room_of(file)


def _room_below(frame: FrameType) -> str:
    """Return the room that called; of a thread's first frame, the one that handed it the work."""
    below = frame.f_back
    while below is not None:
        room = _room_of(below)
        if room is not None:
            return room
        below = below.f_back
    return _room.get() or ""


@contextmanager
def _profiled(recorder: Recorder) -> Iterator[None]:
    """Let a recorder follow all threads that are started in the block."""
    before = threading.getprofile()
    threading.setprofile(recorder)
    try:
        yield
    finally:
        threading.setprofile(before)


def trace() -> Recorder:
    """Return the calls of one round."""
    recorder = Recorder()
    clients = {"minimum": CLIENTS, "quorum": 1.0, "deadline": 30, "patience": 1}
    with tempfile.TemporaryDirectory() as folder, _profiled(recorder):
        run = settings(Path(folder), rounds=1, clients=clients)
        federation = Federation(Path(folder), run).start()
        try:
            federation.run_clients(*[federation.client(f"client-{i}") for i in range(CLIENTS)])
        finally:
            federation.close()
    return recorder


def chosen(arrows: list[Arrow], wanted: set[tuple[str, str]]) -> list[Arrow]:
    """Return the arrows to draw, in the order in which they occurred."""
    found = [arrow for arrow in arrows if (arrow.caller, arrow.name) in wanted]
    missing = wanted - {(arrow.caller, arrow.name) for arrow in found}
    assert not missing, f"these calls were not made: {missing}"
    return found


def sequence(arrows: list[Arrow]) -> str:
    """Return arrows as a Mermaid sequence diagram."""
    rooms = {room for arrow in arrows for room in (arrow.caller, arrow.callee)}
    lines = [f"    participant {_node(room)} as {_label(room)}" for room in ORDER if room in rooms]
    for caller, callee, name in arrows:
        line = "-->>" if name == "SubmitReply" else "->>"
        lines.append(f"    {_node(caller)}{line}{_node(callee)}: {name}")
    return "\n".join(["sequenceDiagram", *lines])


def _node(room: str) -> str:
    return room.replace("/", "_")


def _label(room: str) -> str:
    return f"{room}.py" if f"{room}.py" in FILE_ROOMS else room


def diagrams() -> tuple[str, str]:
    """Return the pictures of an update and of a broadcast."""
    made = trace()
    return sequence(chosen(made.update, UPDATE)), sequence(chosen(made.broadcast, BROADCAST))


if __name__ == "__main__":
    print("\n\n".join(diagrams()))
