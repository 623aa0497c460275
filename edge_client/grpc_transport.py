"""The client's calls to a server over gRPC; no other module of the client imports grpc."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc

from featherfed.edge_client.credentials import SERVER_NAME, Credentials
from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask, Unreachable
from featherfed.edge_client.handshake import HandshakeCheck
from featherfed.edge_client.partial_download import PartialDownload
from featherfed.edge_client.retry import Retry
from featherfed.edge_client.training_step import check_step
from featherfed.edge_client.transport import CHUNK_BYTES
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc

RETRY_CHUNK_BYTES = 16 * 1024
"""Bytes of a message after an upload broke off: smaller ones also pass over a very thin link."""
POLL_SECONDS = 20
"""How long the server may hold a request for the next task."""
CALL_TIMEOUT = 60.0
TRANSFER_TIMEOUT = 3600.0
"""Seconds: long enough for a model over a thin link; keepalive detects a dead one sooner."""

_OPTIONS = [
    # Keeps the receive window at 64 KiB: with more, some MiB would be lost when a link is cut.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 15_000),
]

# The server refuses the call itself; any other code may come from the link and is retried.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}

RETRY_AFTER = "retry-after"
"""Key of the trailing metadata in which a busy server asks to wait, in seconds."""
LONGEST_HINT = 300.0
"""Most seconds that a client waits on a server's request."""

T = TypeVar("T")


class GrpcTransport:
    """Implements `Transport` and `ReleaseSource` by gRPC; retries all calls but heartbeats."""

    def __init__(
        self,
        address: str,
        give_up_after: float,
        credentials: Credentials | None = None,
        partial: Path | None = None,
    ) -> None:
        """Connect to `address` (host:port); give up when it is silent for `give_up_after` seconds.

        `credentials`: None for plaintext. `partial`: the file that keeps an unfinished model
        download, for this process or the next one to resume; None for memory only.
        """
        self._address = address
        self._partial = partial
        self._retry = Retry(give_up_after)
        self._handshake = HandshakeCheck(address, credentials)
        self._channel = _channel(address, credentials)
        self._stub = pb_grpc.FederationStub(self._channel)

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:  # noqa: D102
        return self._call(lambda: self._stub.Join(request, timeout=CALL_TIMEOUT))

    def next_task(self, session: int) -> pb.NextTaskReply:  # noqa: D102
        request = pb.NextTaskRequest(session=session, wait_seconds=POLL_SECONDS)
        return self._call(lambda: self._stub.NextTask(request, timeout=CALL_TIMEOUT))

    def fetch_model(  # noqa: D102
        self, request: pb.FetchModelRequest
    ) -> tuple[list[pb.Link], bytes]:
        with PartialDownload(self._partial, request) as partial:
            self._call(lambda: self._fetch(request, partial), lambda: partial.size)
            return partial.finish()

    def _fetch(self, request: pb.FetchModelRequest, partial: PartialDownload) -> None:
        ask = pb.FetchModelRequest()
        ask.CopyFrom(request)
        ask.offset = partial.size
        first = True
        for chunk in self._stub.FetchModel(ask, timeout=TRANSFER_TIMEOUT):
            if first and not partial.begin(chunk.links, chunk.offset):
                raise Rejected(f"{self._address}: the server resumes a transfer that never began")
            first = False
            partial.add(chunk.data)
            if partial.size > partial.announced:
                raise Rejected(f"{self._address}: the server sends more than it announced")

    def fetch_step(self, session: int, step: pb.Step) -> bytes:  # noqa: D102
        check_step(step)
        data = bytearray()
        self._call(lambda: self._fetch_step(session, step, data), lambda: len(data))
        return bytes(data)

    def _fetch_step(self, session: int, step: pb.Step, data: bytearray) -> None:
        request = pb.FetchStepRequest(session=session, offset=len(data))
        for chunk in self._stub.FetchStep(request, timeout=TRANSFER_TIMEOUT):
            data += chunk.data
            if len(data) > step.compressed:
                raise Rejected(f"{self._address}: the server sends more than it announced")

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

    def heartbeat(self, session: int, timeout: float) -> None:  # noqa: D102
        request = pb.HeartbeatRequest(session=session)
        try:
            self._translate(lambda: self._stub.Heartbeat(request, timeout=timeout))
        except ValueError as error:  # raised by gRPC for a channel that is closed
            raise Unreachable(f"{self._address}: {error}") from error

    def fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int
    ) -> tuple[pb.Release, bytes] | None:
        """Return a release and its data, at most `limit` bytes; None if nothing is newer."""
        got = _PartialRelease()
        self._call(lambda: self._fetch_release(request, limit, got), lambda: len(got.data))
        return None if got.release is None else (got.release, bytes(got.data))

    def _fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int, got: _PartialRelease
    ) -> None:
        ask = pb.FetchReleaseRequest()
        ask.CopyFrom(request)
        if got.release is not None:
            ask.offset, ask.offset_digest = len(got.data), got.release.digest
        release: pb.Release | None = None
        for chunk in self._stub.FetchRelease(ask, timeout=TRANSFER_TIMEOUT):
            if release is None:
                release = chunk.release
                if chunk.offset > (len(got.data) if release == got.release else 0):
                    raise Rejected(
                        f"{self._address}: the server resumes a transfer that never began"
                    )
                got.release = release
                del got.data[chunk.offset :]
            got.data += chunk.data
            if len(got.data) > min(release.compressed, limit):
                raise Rejected(f"{self._address}: the server sends more than it announced")

    def status(self) -> pb.StatusReply:
        """Return the run's progress; needs no session."""
        return self._call(lambda: self._stub.GetStatus(pb.StatusRequest(), timeout=5))

    def close(self) -> None:  # noqa: D102
        self._channel.close()

    def _call(self, call: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Return the result of `call`; retried, and with errors translated."""
        return self._retry.run(lambda: self._translate(call), progress)

    def _translate(self, call: Callable[[], T]) -> T:
        """Return the result of `call`, with gRPC's errors turned into those of errors.py."""
        try:
            result = call()
        except grpc.RpcError as error:
            raise self._translated(error) from error
        self._handshake.answered()
        return result

    def _translated(self, error: grpc.RpcError) -> Exception:
        text = f"{self._address}: {error.details()}"
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return SessionLost(text)
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return StaleTask(text)
        if error.code() in _FINAL:
            return Rejected(text)
        fault = self._handshake.failed(error.code() is grpc.StatusCode.UNAVAILABLE)
        if fault is not None:
            return fault
        unreachable = Unreachable(f"{text} ({error.code().name})")
        unreachable.retry_after = _retry_after(error)
        unreachable.busy = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return unreachable


def _retry_after(error: grpc.RpcError) -> float:
    """Return the seconds that a server asks to wait; 0 if it asks for none, or not for a number."""
    for item in error.trailing_metadata() or ():
        if item.key == RETRY_AFTER:
            with suppress(ValueError):
                seconds = float(item.value)
                return min(seconds, LONGEST_HINT) if seconds > 0 else 0.0
    return 0.0


def _channel(address: str, credentials: Credentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    secure = grpc.ssl_channel_credentials(
        credentials.authorities, credentials.key, credentials.certificate
    )
    options: list[tuple[str, int | str]] = list(_OPTIONS)
    if credentials.token is not None:  # gRPC never sends it unencrypted
        token = grpc.access_token_call_credentials(credentials.token)
        secure = grpc.composite_channel_credentials(secure, token)
    if credentials.folder is not None:
        options.append(("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.secure_channel(address, secure, options=options)


class _PartialRelease:
    """The part of a release that was received so far."""

    def __init__(self) -> None:
        self.release: pb.Release | None = None
        self.data = bytearray()


def _chunks(header: pb.UpdateHeader, payload: bytes, size: int) -> Iterator[pb.UpdateChunk]:
    """Yield a payload from the header's offset on, in chunks of `size` bytes."""
    first = header.offset + size
    yield pb.UpdateChunk(header=header, data=payload[header.offset : first])
    for at in range(first, len(payload), size):
        yield pb.UpdateChunk(data=payload[at : at + size])
