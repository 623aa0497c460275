"""A server and its clients' transports in one process: gRPC's messages and counts without gRPC."""

from __future__ import annotations

import threading

from google.protobuf.message import Message

from featherfed.edge_client.errors import Rejected
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Refused
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import LedgerEntry
from featherfed.server.transfers.deliveries import Deliveries
from featherfed.server.transfers.framing import control_entries, framed_size
from featherfed.sweep.simulated_transport import SimulatedTransport


class LocalServer:
    """Replaces the server's loop and gRPC service: rounds advance within the clients' calls.

    Each client is a thread that holds `lock` except while it waits for a task, so one runs at a
    time: nothing they share has to be thread-safe, and a run repeats exactly.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.deliveries = Deliveries(coordinator)
        self._known: object = None
        self._changes = 0
        self._failed = False
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)

    def drive(self) -> None:
        """Open, close and aggregate rounds that are due, and wake clients that wait for a task."""
        with self._changed:
            state = self.coordinator.tick()
            while state.phase is Phase.AGGREGATING:
                self.coordinator.aggregate()
                state = self.coordinator.tick()
            if self._known != (state.phase, state.round, state.cohort):
                self._known = state.phase, state.round, state.cohort
                self._changes += 1
                self._changed.notify_all()

    def fail(self) -> None:
        """Make all waiting clients give up: the run cannot go on."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def next_task(self, client: str, has_scaling: bool) -> pb.NextTaskReply:
        """Return the client's next task, as soon as there is one."""
        while True:
            with self._changed:
                self._check()
                seen = self._changes
            reply = self.coordinator.tasks.next_task(client, has_scaling)
            if not reply.HasField("wait"):
                return reply
            self.drive()
            with self._changed:
                while self._changes == seen and not self._failed:
                    self._changed.wait()
                self._check()

    def _check(self) -> None:
        if self._failed:
            raise Rejected("another part of the run has failed")


class LocalTransport(SimulatedTransport):
    """A client's transport that calls the server's parts directly."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._coordinator = server.coordinator

    def get_task(self, client: str) -> pb.GetTaskReply:
        """Return what the run learns."""
        return self._coordinator.admission.task()

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Join; raise Rejected if refused."""
        try:
            reply = self._coordinator.admission.join(request)
        except Refused as refusal:
            raise Rejected(str(refusal)) from refusal
        self._count_control(request.client, request, reply)
        return reply

    def next_task(self, session: int, has_scaling: bool = False) -> pb.NextTaskReply:
        """Return the next task, however long it takes to come."""
        client = self._coordinator.members.client_of(session)
        reply = self._server.next_task(client, has_scaling)
        request = pb.NextTaskRequest(session=session, wait_seconds=1, has_scaling=has_scaling)
        self._count_control(client, request, reply)
        return reply

    def fetch_model(self, request: pb.FetchModelRequest, limit: int) -> tuple[list[pb.Link], bytes]:
        """Return links and payloads, counted as one message."""
        client = self._coordinator.members.client_of(request.session)
        route, download = self._server.deliveries.deliver(client, request)
        download.add(
            len(route.data), framed_size(pb.ModelChunk(links=route.links, data=route.data))
        )
        size = framed_size(request)
        asked = LedgerEntry(download.round, client, "uplink", "control", 0, size)
        download.count(asked, last=True)
        return route.links, route.data

    def fetch_step(self, session: int, step: pb.Step) -> bytes:
        """Return the exported training step, counted as one message."""
        client = self._coordinator.members.client_of(session)
        data = self._coordinator.training_step.compressed
        request = pb.FetchStepRequest(session=session)
        self._count_control(client, request, pb.FileChunk(data=data))
        return data

    def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        """Send an update, counted as one message."""
        client = self._coordinator.members.client_of(header.session)
        size = framed_size(pb.UpdateChunk(header=header, data=payload))
        try:
            outcome = self._coordinator.updates.submit(client, header, payload, size)
        except Refused as refusal:
            return pb.SubmitReply(outcome=pb.REFUSED, reason=refusal.reason, detail=refusal.detail)
        self._server.drive()
        return pb.SubmitReply(outcome=outcome)

    def report_evaluation(self, report: pb.EvaluationReport) -> None:
        """Tell how good the final model is; raise Rejected if refused."""
        client = self._coordinator.members.client_of(report.session)
        try:
            receipt = self._coordinator.report_evaluation(client, report)
        except Refused as refusal:
            raise Rejected(str(refusal)) from refusal
        self._count_control(client, report, receipt)

    def _count_control(self, client: str, request: Message, reply: Message) -> None:
        entries = control_entries(self._coordinator.run.ledger_round, client, request, reply)
        self._coordinator.store.ledger.count(*entries)
