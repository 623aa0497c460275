"""A transport that calls the coordinator directly: the same messages, counted alike, no gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable

from featherfed.edge_client.errors import Rejected
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import Entry
from featherfed.server.transfers.framing import framed_size


class LocalServer:
    """What `conduct` and `service` are for gRPC: whoever has news for the server drives the run.

    Clients are threads, but one at a time: each holds `turn` unless it waits for a task. Nothing
    they use has to be safe for threads, and a run repeats exactly.
    """

    def __init__(self, coordinator: Coordinator, on_round: Callable[[], None]) -> None:
        self.coordinator = coordinator
        self._on_round = on_round
        self._known: object = None
        self._news = 0
        self._failed = False
        self.turn = threading.RLock()
        self._changed = threading.Condition(self.turn)

    def drive(self) -> None:
        """Open, close and aggregate rounds that are due, and wake those who wait for it."""
        with self._changed:
            state = self.coordinator.tick()
            while state.phase is Phase.AGGREGATING:
                self.coordinator.aggregate()
                self._on_round()
                state = self.coordinator.tick()
            if self._known != (state.phase, state.round, state.cohort):
                self._known = state.phase, state.round, state.cohort
                self._news += 1
                self._changed.notify_all()

    def fail(self) -> None:
        """Let everybody who waits give up: the run cannot go on."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def next_task(self, client: str) -> pb.NextTaskReply:
        """Return the client's next task, as soon as there is one."""
        while True:
            with self._changed:
                mark = self._news
            reply = self.coordinator.next_task(client)
            if not reply.HasField("wait"):
                return reply
            self.drive()
            with self._changed:
                while self._news == mark and not self._failed:
                    self._changed.wait()
                if self._failed:
                    raise Rejected("another part of the run has failed")


class LocalTransport:
    """Implements the client's `Transport` in the server's own process."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._coordinator = server.coordinator

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Join; raise Rejected if refused."""
        try:
            reply = self._coordinator.join(request)
        except Refused as refusal:
            raise Rejected(str(refusal)) from refusal
        self._count_control(request.client, framed_size(request), framed_size(reply))
        return reply

    def next_task(self, session: int) -> pb.NextTaskReply:
        """Wait for something to do, as long as it takes."""
        client = self._coordinator.client_of(session)
        reply = self._server.next_task(client)
        request = pb.NextTaskRequest(session=session, wait_seconds=1)
        self._count_control(client, framed_size(request), framed_size(reply))
        return reply

    def fetch_model(self, request: pb.FetchModelRequest) -> tuple[list[pb.Link], bytes]:
        """Return links and payloads, counted as one message."""
        client = self._coordinator.client_of(request.session)
        delivery = self._coordinator.fetch(client, request)
        route = delivery.route
        size = framed_size(pb.ModelChunk(links=route.links, data=route.data))
        kind = "retry" if delivery.again else "transfer"
        self._coordinator.store.count(
            Entry(delivery.round, client, "uplink", "control", 0, framed_size(request)),
            Entry(delivery.round, client, "downlink", kind, len(route.data), size),
        )
        return route.links, route.data

    def fetch_step(self, session: int, step: pb.Step) -> bytes:
        """Return the exported training step, counted as one message."""
        client = self._coordinator.client_of(session)
        data = self._coordinator.training_step
        request = pb.FetchStepRequest(session=session)
        self._count_control(client, framed_size(request), framed_size(pb.FileChunk(data=data)))
        return data

    def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        """Send an update, counted as one message."""
        client = self._coordinator.client_of(header.session)
        size = framed_size(pb.UpdateChunk(header=header, data=payload))
        try:
            outcome = self._coordinator.submit(client, header, payload, size)
        except Refused as refusal:
            return pb.SubmitReply(outcome=pb.REFUSED, reason=refusal.reason, detail=refusal.detail)
        self._server.drive()
        return pb.SubmitReply(outcome=outcome)

    def heartbeat(self, session: int, timeout: float) -> None:
        """Do nothing: time stands still, so nobody is missed."""

    def resume_update(self, header: pb.UpdateHeader) -> int:
        """Return 0: nothing breaks off in one process."""
        return 0

    def close(self) -> None:
        """Do nothing."""

    def _count_control(self, client: str, up: int, down: int) -> None:
        round_ = self._coordinator.ledger_round
        self._coordinator.store.count(
            Entry(round_, client, "uplink", "control", 0, up),
            Entry(round_, client, "downlink", "control", 0, down),
        )
