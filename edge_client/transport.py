"""The seam to the server: one protocol, and its gRPC adapter. Only this module knows gRPC."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import grpc
import tenacity

from featherfed.edge_client.credentials import SERVER_NAME, Credentials
from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask, Unreachable
from featherfed.edge_client.handshake import diagnose
from featherfed.edge_client.plan import check_step
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 1024
POLL_SECONDS = 20
CALL_TIMEOUT = 60.0
TRANSFER_TIMEOUT = 3600.0
"""A model over a thin link may take its time; a dead link is noticed by keepalive."""

_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 15_000),
]

# What a server says about the call itself; anything else is the link's fault and worth a retry.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}

T = TypeVar("T")


class Transport(Protocol):
    """What a session needs of a server; its methods raise Rejected, SessionLost, Unreachable."""

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Present the client, get session and plan."""

    def next_task(self, session: int) -> pb.NextTaskReply:
        """Wait for something to do, half a minute at most."""

    def fetch_model(self, request: pb.FetchModelRequest) -> tuple[list[pb.Link], bytes]:
        """Return the links to a version and their payloads, one after the other."""

    def fetch_step(self, session: int, step: pb.Step) -> bytes:
        """Return the announced training step, compressed."""

    def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        """Send an update."""

    def close(self) -> None:
        """End the connection."""


class GrpcTransport:
    """gRPC over HTTP/2; retries with exponential backoff and full jitter."""

    def __init__(
        self, address: str, give_up_after: float, credentials: Credentials | None = None
    ) -> None:
        """Talk to `address` (host:port); give up when it is silent for `give_up_after` seconds.

        Without `credentials`, in plaintext.
        """
        self._address = address
        self._give_up_after = give_up_after
        self._credentials = credentials
        self._answered = False
        self._faults = 0
        self._channel = _channel(address, credentials)
        self._stub = pb_grpc.FederationStub(self._channel)

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:  # noqa: D102
        return self._retry(lambda: self._stub.Join(request, timeout=CALL_TIMEOUT))

    def next_task(self, session: int) -> pb.NextTaskReply:  # noqa: D102
        request = pb.NextTaskRequest(session=session, wait_seconds=POLL_SECONDS)
        return self._retry(lambda: self._stub.NextTask(request, timeout=CALL_TIMEOUT))

    def fetch_model(  # noqa: D102
        self, request: pb.FetchModelRequest
    ) -> tuple[list[pb.Link], bytes]:
        return self._retry(lambda: self._fetch(request))

    def _fetch(self, request: pb.FetchModelRequest) -> tuple[list[pb.Link], bytes]:
        links: list[pb.Link] = []
        data = bytearray()
        for chunk in self._stub.FetchModel(request, timeout=TRANSFER_TIMEOUT):
            links += chunk.links
            data += chunk.data
            if len(data) > sum(link.size for link in links):
                raise Rejected(f"{self._address}: the server sends more than it announced")
        return links, bytes(data)

    def fetch_step(self, session: int, step: pb.Step) -> bytes:  # noqa: D102
        check_step(step)
        return self._retry(lambda: self._fetch_step(session, step))

    def _fetch_step(self, session: int, step: pb.Step) -> bytes:
        data = bytearray()
        request = pb.FetchStepRequest(session=session)
        for chunk in self._stub.FetchStep(request, timeout=TRANSFER_TIMEOUT):
            data += chunk.data
            if len(data) > step.compressed:
                raise Rejected(f"{self._address}: the server sends more than it announced")
        return bytes(data)

    def submit_update(  # noqa: D102
        self, header: pb.UpdateHeader, payload: bytes
    ) -> pb.SubmitReply:
        def call() -> pb.SubmitReply:
            return self._stub.SubmitUpdate(_chunks(header, payload), timeout=TRANSFER_TIMEOUT)

        return self._retry(call)

    def fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int
    ) -> tuple[pb.Release, bytes] | None:
        """Return a release and its data, at most `limit` bytes, or None if there is nothing new."""
        return self._retry(lambda: self._fetch_release(request, limit))

    def _fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int
    ) -> tuple[pb.Release, bytes] | None:
        release: pb.Release | None = None
        data = bytearray()
        for chunk in self._stub.FetchRelease(request, timeout=TRANSFER_TIMEOUT):
            if release is None:
                release = chunk.release
            data += chunk.data
            if len(data) > min(release.compressed, limit):
                raise Rejected(f"{self._address}: the server sends more than it announced")
        return None if release is None else (release, bytes(data))

    def status(self) -> pb.StatusReply:
        """Return where the run is; needs no session."""
        return self._retry(lambda: self._stub.GetStatus(pb.StatusRequest(), timeout=5))

    def close(self) -> None:  # noqa: D102
        self._channel.close()

    def _retry(self, call: Callable[[], T]) -> T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unreachable),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
            stop=tenacity.stop_after_delay(self._give_up_after),
            before_sleep=self._say_waiting,
            reraise=True,
        )
        result: T = retrying(self._translate, call)
        return result

    def _translate(self, call: Callable[[], T]) -> T:
        try:
            result = call()
            self._answered, self._faults = True, 0
            return result
        except grpc.RpcError as error:
            text = f"{self._address}: {error.details()}"
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise SessionLost(text) from error
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise StaleTask(text) from error
            if error.code() in _FINAL:
                raise Rejected(text) from error
            self._check_handshake(error)
            raise Unreachable(f"{text} ({error.code().name})") from error

    def _check_handshake(self, error: grpc.RpcError) -> None:
        """Raise what is wrong with the credentials, if that is why there is no answer."""
        if self._answered or error.code() is not grpc.StatusCode.UNAVAILABLE:
            self._answered = False  # once is the link's fault; from the second time on it is asked
            return
        fault = diagnose(self._address, self._credentials)
        if fault is None:
            return
        self._faults += 1
        if self._faults >= fault.tries:
            raise Rejected(f"{self._address}: {fault.message}") from error
        raise Unreachable(f"{self._address}: {fault.message}") from error

    def _say_waiting(self, state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            log.warning("no answer, trying again: %s", state.outcome.exception())


def _channel(address: str, credentials: Credentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    secure = grpc.ssl_channel_credentials(
        credentials.authorities, credentials.key, credentials.certificate
    )
    options: list[tuple[str, int | str]] = list(_OPTIONS)
    if credentials.token is not None:  # gRPC never sends it over a connection in plaintext
        token = grpc.access_token_call_credentials(credentials.token)
        secure = grpc.composite_channel_credentials(secure, token)
    if credentials.folder is not None:
        options.append(("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.secure_channel(address, secure, options=options)


def _chunks(header: pb.UpdateHeader, payload: bytes) -> Iterator[pb.UpdateChunk]:
    first, rest = payload[:CHUNK_BYTES], payload[CHUNK_BYTES:]
    yield pb.UpdateChunk(header=header, data=first)
    for at in range(0, len(rest), CHUNK_BYTES):
        yield pb.UpdateChunk(data=rest[at : at + CHUNK_BYTES])
