"""The methods of the federation service: each call becomes a call of the coordinator's parts."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.access.names import check_name
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.rpc.calls import CallHandler, call, client_call, stranger_call
from featherfed.server.rpc.changes import Changes
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.draining import GOING_DOWN, Draining
from featherfed.server.rpc.model_file_calls import ModelFileCalls
from featherfed.server.rpc.release_calls import ReleaseCalls
from featherfed.server.rpc.streams import ChunkSender, chunks, pieces
from featherfed.server.storage.records import LedgerEntry
from featherfed.server.transfers.deliveries import Deliveries
from featherfed.server.transfers.framing import framed_size
from featherfed.server.transfers.leases import Leases, uninterrupted
from featherfed.server.transfers.releases import Releases
from featherfed.server.transfers.routes import Route
from featherfed.server.transfers.uploads import Uploads

MAX_WAIT_SECONDS = 25
"""The longest that a call waits for a change in the run."""


class FederationService(CallHandler, pb_grpc.FederationServicer):
    """Answers the calls of clients and devices; federation.proto describes each."""

    def __init__(
        self,
        coordinator: Coordinator,
        releases: Releases | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Without `releases`, inference-only devices are refused."""
        telemetry = telemetry or Telemetry()
        super().__init__(coordinator, telemetry)
        self.changes = Changes()
        self.round_may_be_due = asyncio.Event()
        """Set when a client begins to wait, or has what it asked for."""
        self._coordinator = coordinator
        self._commits = coordinator.commits
        self._deliveries = Deliveries(coordinator)
        self._uploads = Uploads(coordinator, telemetry)
        self._sender = ChunkSender(self._commits, coordinator.settings.limits.stall_seconds)
        self._release_calls = ReleaseCalls(
            coordinator, releases, self.callers, self.bytes, self._sender, self.changes
        )
        self._model_file_calls = ModelFileCalls(
            coordinator, self.callers, self.bytes, self._sender, self.changes
        )
        self.draining = Draining(self.changes, self._uploads)
        self._leases = Leases()
        self._shared: tuple[Route, list[Any]] | None = None

    @stranger_call
    async def GetTask(  # noqa: D102
        self, request: pb.GetTaskRequest, context: Context
    ) -> pb.GetTaskReply:
        check_name(request.client)
        self.callers.check_proven(request.client)
        reply = self._coordinator.admission.task()
        if request.client in self._coordinator.members:  # else the ledger grows with each name
            await self.bytes.count_control(request.client, request, reply)
        return reply

    @stranger_call
    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: D102
        self.callers.check_proven(request.client)
        reply = await self._commits.run(self._coordinator.admission.join, request)
        await self.bytes.count_control(request.client, request, reply)
        return reply

    @client_call
    async def NextTask(  # noqa: D102
        self, request: pb.NextTaskRequest, client: str, context: Context
    ) -> pb.NextTaskReply:
        tasks = self._coordinator.tasks
        self._coordinator.health.hear(client, request)

        async def ask() -> pb.NextTaskReply:
            # Since the call began, the client may have been excluded or its session ended.
            self._coordinator.members.client_of(request.session)
            self._coordinator.members.check_included(client)
            if tasks.was_away(client):
                await self._commits.run(tasks.returned, client)
            return tasks.current(client, request.has_scaling)

        def found(task: pb.NextTaskReply) -> bool:
            waits = task.HasField("wait")
            if waits:
                self.round_may_be_due.set()
            return not waits

        with self.callers.polling(client):
            seconds = min(request.wait_seconds, MAX_WAIT_SECONDS)
            reply = await self.changes.poll(ask, found, seconds)
        if self.draining.begun and reply.HasField("wait"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, GOING_DOWN)
        return reply

    @client_call
    async def FetchModel(  # type: ignore[override]  # noqa: D102
        self, request: pb.FetchModelRequest, client: str, context: Context
    ) -> None:
        async with self._leases.acquire((client, "model")) as lease:
            route, download = await self._commits.run(self._deliveries.deliver, client, request)
            first = pb.ModelChunk(links=route.links, offset=download.begin)
            rest = chunks(pb.ModelChunk, first, download.data)
            messages = rest if download.begin else self._shared_chunks(route, rest)
            asked = LedgerEntry(
                download.round, client, "uplink", "control", 0, framed_size(request)
            )
            hear = functools.partial(self._coordinator.presence.hear, client)
            await self._sender.send(context, lease, messages, download, asked, hear)
        self.round_may_be_due.set()

    def _shared_chunks(self, route: Route, messages: Iterator[Any]) -> list[Any]:
        """Return the chunks of a whole route, one list for all clients that download it."""
        if self._shared is None or self._shared[0] is not route:
            self._shared = route, list(messages)
        return self._shared[1]

    @client_call
    async def FetchStep(  # type: ignore[override]  # noqa: D102
        self, request: pb.FetchStepRequest, client: str, context: Context
    ) -> None:
        round_, size = self._coordinator.run.ledger_round, 0
        data = self._coordinator.training_step.compressed[request.offset :]
        async with self._leases.acquire((client, "step")) as lease:
            try:
                for piece in pieces(data):
                    message = pb.FileChunk(data=piece)
                    await self._sender.write(context, lease, message)
                    self._coordinator.presence.hear(client)
                    size += framed_size(message)
            finally:
                asked = LedgerEntry(round_, client, "uplink", "control", 0, framed_size(request))
                sent = LedgerEntry(round_, client, "downlink", "control", 0, size)
                await uninterrupted(self.bytes.count(asked, sent))

    @call
    async def SubmitUpdate(  # noqa: D102
        self, request_iterator: AsyncIterator[pb.UpdateChunk], context: Context
    ) -> pb.SubmitReply:
        async def identify(session: int) -> str:
            return self.callers.client(session, context)

        received = await self._uploads.receive(request_iterator, identify)
        if received.reply is None:
            assert received.refusal is not None, "an upload ends with a reply or a refusal"
            await self.refuser.end(context, received.refusal)
        size = framed_size(received.reply)
        client, round_ = received.client, received.round
        await self.bytes.count(LedgerEntry(round_, client, "downlink", "control", 0, size))
        return received.reply

    @client_call
    async def ResumeUpload(  # noqa: D102
        self, request: pb.ResumeUploadRequest, client: str, context: Context
    ) -> pb.ResumeUploadReply:
        return pb.ResumeUploadReply(offset=await self._uploads.resume_at(client, request.header))

    @client_call
    async def ReportEvaluation(  # noqa: D102
        self, request: pb.EvaluationReport, client: str, context: Context
    ) -> pb.EvaluationReceipt:
        report = self._coordinator.report_evaluation
        receipt = await self._commits.run(report, client, request)
        self.round_may_be_due.set()
        self.changes.notify()  # the int8 file may have waited for it
        return receipt

    @client_call
    async def FetchModelFile(  # type: ignore[override]  # noqa: D102
        self, request: pb.FetchModelFileRequest, client: str, context: Context
    ) -> None:
        await self._model_file_calls.fetch(request, client, context)

    @client_call
    async def ReportRanges(  # noqa: D102
        self, request: pb.RangesReport, client: str, context: Context
    ) -> pb.RangesReceipt:
        report = self._coordinator.model_files.report_ranges
        receipt = await self._commits.run(report, client, request)
        self.changes.notify()
        return receipt

    @client_call
    async def Heartbeat(  # noqa: D102
        self, request: pb.HeartbeatRequest, client: str, context: Context
    ) -> pb.HeartbeatReply:
        self._coordinator.health.hear(client, request)
        return pb.HeartbeatReply()

    @stranger_call
    async def FetchRelease(  # type: ignore[override]  # noqa: D102
        self, request: pb.FetchReleaseRequest, context: Context
    ) -> None:
        seconds = min(request.wait_seconds, MAX_WAIT_SECONDS)
        await self._release_calls.fetch(request, seconds, context)

    @stranger_call
    async def GetStatus(  # noqa: D102
        self, request: pb.StatusRequest, context: Context
    ) -> pb.StatusReply:
        return await asyncio.to_thread(self._coordinator.status)
