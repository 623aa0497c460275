"""The calls of a training client over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from featherfed.edge_client.answers import check_file
from featherfed.edge_client.credentials import Credentials
from featherfed.edge_client.errors import Rejected, Unreachable
from featherfed.edge_client.grpc_connection import CALL_TIMEOUT, TRANSFER_TIMEOUT, GrpcConnection
from featherfed.edge_client.partial_download import PartialDownload
from featherfed.edge_client.retry import Retry
from featherfed.edge_client.training_step import check_step
from featherfed.edge_client.transport import CHUNK_BYTES
from featherfed.proto import federation_pb2 as pb

RETRY_CHUNK_BYTES = 16 * 1024
"""Bytes of a message after an upload broke off: smaller ones also pass over a very thin link."""
POLL_SECONDS = 20
"""How long the server may hold a request for the next task."""

REPORT_SECONDS = 60.0
"""How long a client tries to report how good the final model is."""


class GrpcTransport(GrpcConnection):
    """Implements `Transport` by gRPC; retries all calls but heartbeats."""

    def __init__(
        self,
        address: str,
        give_up_after: float,
        credentials: Credentials | None = None,
        partial: Path | None = None,
        health: Callable[[], pb.DeviceHealth | None] = lambda: None,
    ) -> None:
        """Connect to `address` (host:port); give up when it is silent for `give_up_after` seconds.

        `credentials`: None for plaintext. `partial`: the file that keeps an unfinished model
        download, for this process or the next one to resume; None for memory only. `health`: goes
        with heartbeats and with the question for the next task.
        """
        super().__init__(address, give_up_after, credentials)
        self._health = health
        self._partial = partial

    def get_task(self, client: str) -> pb.GetTaskReply:  # noqa: D102
        request = pb.GetTaskRequest(client=client)
        return self._call(lambda: self._stub.GetTask(request, timeout=CALL_TIMEOUT))

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:  # noqa: D102
        return self._call(lambda: self._stub.Join(request, timeout=CALL_TIMEOUT))

    def next_task(  # noqa: D102
        self, session: int, has_scaling: bool = False
    ) -> pb.NextTaskReply:
        request = pb.NextTaskRequest(
            session=session,
            wait_seconds=POLL_SECONDS,
            has_scaling=has_scaling,
            health=self._health(),
        )
        return self._call(lambda: self._stub.NextTask(request, timeout=CALL_TIMEOUT))

    def fetch_model(  # noqa: D102
        self, request: pb.FetchModelRequest, limit: int
    ) -> tuple[list[pb.Link], bytes]:
        with PartialDownload(self._partial, request, limit) as partial:
            self._call(lambda: self._fetch(request, partial), lambda: partial.size)
            return partial.finish()

    def _fetch(self, request: pb.FetchModelRequest, partial: PartialDownload) -> None:
        ask = pb.FetchModelRequest()
        ask.CopyFrom(request)
        ask.offset = partial.size
        first = True
        for chunk in self._stub.FetchModel(ask, timeout=TRANSFER_TIMEOUT):
            if first and not partial.begin(chunk.links, chunk.offset):
                if not ask.offset:
                    raise Rejected(
                        f"{self._address}: the server resumes a transfer that never began"
                    )
                partial.forget()  # it is of other links: a restored server made the version anew
                return self._fetch(request, partial)
            self._check_chunk(chunk, first, partial.size, partial.announced)
            first = False
            partial.add(chunk.data)

    def fetch_step(self, session: int, step: pb.Step) -> bytes:  # noqa: D102
        check_step(step)
        data = bytearray()
        self._call(lambda: self._fetch_step(session, step, data), lambda: len(data))
        return bytes(data)

    def _fetch_step(self, session: int, step: pb.Step, data: bytearray) -> None:
        request = pb.FetchStepRequest(session=session, offset=len(data))
        first = True
        for chunk in self._stub.FetchStep(request, timeout=TRANSFER_TIMEOUT):
            self._check_chunk(chunk, first, len(data), step.compressed)
            first = False
            data += chunk.data

    def submit_update(  # noqa: D102
        self, header: pb.UpdateHeader, payload: bytes
    ) -> pb.SubmitReply:
        head = pb.UpdateHeader()
        head.CopyFrom(header)
        again = False

        def call() -> pb.SubmitReply:
            nonlocal again
            if again and head.digest:
                head.offset = self._ask_offset(head)
            chunks = _chunks(head, payload, RETRY_CHUNK_BYTES if again else CHUNK_BYTES)
            again = True
            return self._stub.SubmitUpdate(chunks, timeout=TRANSFER_TIMEOUT)

        return self._call(call, lambda: head.offset)

    def resume_update(self, header: pb.UpdateHeader) -> int:  # noqa: D102
        return self._call(lambda: self._ask_offset(header))

    def _ask_offset(self, header: pb.UpdateHeader) -> int:
        reply = self._stub.ResumeUpload(pb.ResumeUploadRequest(header=header), timeout=CALL_TIMEOUT)
        if reply.offset > header.size:
            raise Rejected(f"{self._address}: the server has more of an update than there is")
        return int(reply.offset)

    def report_evaluation(self, report: pb.EvaluationReport) -> None:  # noqa: D102
        def call() -> None:
            self._stub.ReportEvaluation(report, timeout=CALL_TIMEOUT)

        Retry(REPORT_SECONDS).run(lambda: self._translate(call), lambda: 0)

    def fetch_model_file(  # noqa: D102
        self, request: pb.FetchModelFileRequest, limit: int
    ) -> tuple[pb.ModelFile, bytes] | None:
        ask = pb.FetchModelFileRequest()
        ask.CopyFrom(request)
        data = bytearray()

        def call() -> pb.ModelFile | None:
            ask.offset = len(data)
            return self._fetch_file(ask, data, limit)

        file = Retry(REPORT_SECONDS).run(lambda: self._translate(call), lambda: len(data))
        return None if file is None else (file, bytes(data))

    def _fetch_file(
        self, ask: pb.FetchModelFileRequest, data: bytearray, limit: int
    ) -> pb.ModelFile | None:
        file = None
        for chunk in self._stub.FetchModelFile(ask, timeout=TRANSFER_TIMEOUT):
            if file is None:
                if not chunk.HasField("file"):
                    raise Rejected(f"{self._address}: the server sends a file without saying which")
                file = chunk.file
                check_file(file, limit)
                if chunk.offset != len(data) or file.digest != ask.offset_digest:
                    del data[:]
                if chunk.offset != len(data):
                    raise Rejected(
                        f"{self._address}: the server resumes a transfer that never began"
                    )
                ask.offset_digest = file.digest
                self._check_chunk(chunk, True, len(data), file.compressed)
            else:
                self._check_chunk(chunk, False, len(data), file.compressed)
            data += chunk.data
        return file

    def report_ranges(self, report: pb.RangesReport) -> None:  # noqa: D102
        def call() -> None:
            self._stub.ReportRanges(report, timeout=CALL_TIMEOUT)

        Retry(REPORT_SECONDS).run(lambda: self._translate(call), lambda: 0)

    def heartbeat(self, session: int, timeout: float) -> None:  # noqa: D102
        request = pb.HeartbeatRequest(session=session, health=self._health())
        try:
            self._translate(lambda: self._stub.Heartbeat(request, timeout=timeout))
        except ValueError as error:  # raised by gRPC for a channel that is closed
            raise Unreachable(f"{self._address}: {error}") from error


def _chunks(header: pb.UpdateHeader, payload: bytes, size: int) -> Iterator[pb.UpdateChunk]:
    """Yield a payload from the header's offset on, in chunks of `size` bytes."""
    first = header.offset + size
    yield pb.UpdateChunk(header=header, data=payload[header.offset : first])
    for at in range(first, len(payload), size):
        yield pb.UpdateChunk(data=payload[at : at + size])
