"""The seam to the server: one protocol, and its gRPC adapter. Only this module knows gRPC."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc
import tenacity

from featherfed.edge_client.credentials import SERVER_NAME, Credentials
from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask, Unreachable
from featherfed.edge_client.handshake import diagnose
from featherfed.edge_client.partial import Partial
from featherfed.edge_client.plan import check_step
from featherfed.edge_client.transport import CHUNK_BYTES
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

RETRY_CHUNK_BYTES = 16 * 1024
"""After an upload broke off: a link that is too thin for the larger chunks makes headway too."""
POLL_SECONDS = 20
CALL_TIMEOUT = 60.0
TRANSFER_TIMEOUT = 3600.0
"""A model over a thin link may take its time; a dead link is noticed by keepalive."""

_OPTIONS = [
    # 64 KiB of a download are under way; else it may be some MiB, which a cut link loses.
    ("grpc.http2.bdp_probe", 0),
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

RETRY_AFTER = "retry-after"
"""Trailing metadata of a busy server: seconds to wait."""
LONGEST_WAIT = 15.0
LONGEST_HINT = 300.0
"""No server makes a client wait longer than that before it asks again."""
_SOON = 0.5
"""Seconds at most until a transfer that broke off goes on: not all clients at once."""

T = TypeVar("T")


class GrpcTransport:
    """gRPC over HTTP/2; retries with exponential backoff and full jitter."""

    def __init__(
        self,
        address: str,
        give_up_after: float,
        credentials: Credentials | None = None,
        partial: Path | None = None,
    ) -> None:
        """Talk to `address` (host:port); give up when it is silent for `give_up_after` seconds.

        Without `credentials`, in plaintext. `partial`: a file for what came of a model when this
        process dies, for the next one.
        """
        self._address = address
        self._give_up_after = give_up_after
        self._credentials = credentials
        self._partial = partial
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
        with Partial(self._partial, request) as partial:
            self._retry(lambda: self._fetch(request, partial), lambda: partial.size)
            return partial.finish()

    def _fetch(self, request: pb.FetchModelRequest, partial: Partial) -> None:
        ask = pb.FetchModelRequest()
        ask.CopyFrom(request)
        ask.offset = partial.size
        first = True
        for chunk in self._stub.FetchModel(ask, timeout=TRANSFER_TIMEOUT):
            if first and not partial.begin(chunk.links, chunk.offset):
                raise Rejected(f"{self._address}: the server goes on with what it never began")
            first = False
            partial.add(chunk.data)
            if partial.size > partial.announced:
                raise Rejected(f"{self._address}: the server sends more than it announced")

    def fetch_step(self, session: int, step: pb.Step) -> bytes:  # noqa: D102
        check_step(step)
        data = bytearray()
        self._retry(lambda: self._fetch_step(session, step, data), lambda: len(data))
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

        return self._retry(call, lambda: head.offset)

    def resume_update(self, header: pb.UpdateHeader) -> int:  # noqa: D102
        return self._retry(lambda: self._ask_offset(header))

    def _ask_offset(self, header: pb.UpdateHeader) -> int:
        reply = self._stub.ResumeUpload(pb.ResumeUploadRequest(header=header), timeout=CALL_TIMEOUT)
        if reply.offset > header.size:
            raise Rejected(f"{self._address}: the server has more of an update than there is")
        return int(reply.offset)

    def heartbeat(self, session: int, timeout: float) -> None:  # noqa: D102
        request = pb.HeartbeatRequest(session=session)
        try:
            self._translate(lambda: self._stub.Heartbeat(request, timeout=timeout))
        except ValueError as error:  # gRPC's word for a channel that was closed meanwhile
            raise Unreachable(f"{self._address}: {error}") from error

    def fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int
    ) -> tuple[pb.Release, bytes] | None:
        """Return a release and its data, at most `limit` bytes, or None if there is nothing new."""
        got = _Release()
        self._retry(lambda: self._fetch_release(request, limit, got), lambda: len(got.data))
        return None if got.release is None else (got.release, bytes(got.data))

    def _fetch_release(self, request: pb.FetchReleaseRequest, limit: int, got: _Release) -> None:
        ask = pb.FetchReleaseRequest()
        ask.CopyFrom(request)
        if got.release is not None:
            ask.offset, ask.offset_digest = len(got.data), got.release.digest
        release: pb.Release | None = None
        for chunk in self._stub.FetchRelease(ask, timeout=TRANSFER_TIMEOUT):
            if release is None:
                release = chunk.release
                if chunk.offset > (len(got.data) if release == got.release else 0):
                    raise Rejected(f"{self._address}: the server goes on with what it never began")
                got.release = release
                del got.data[chunk.offset :]
            got.data += chunk.data
            if len(got.data) > min(release.compressed, limit):
                raise Rejected(f"{self._address}: the server sends more than it announced")

    def status(self) -> pb.StatusReply:
        """Return where the run is; needs no session."""
        return self._retry(lambda: self._stub.GetStatus(pb.StatusRequest(), timeout=5))

    def close(self) -> None:  # noqa: D102
        self._channel.close()

    def _retry(self, call: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Return what `call` returns once it does; `progress` is in bytes that need no retry.

        A call that got on is followed by another one soon, and however often.
        """
        while True:
            before = progress()
            try:
                return self._attempts(call, progress)
            except Unreachable as error:
                if progress() <= before:
                    raise
                log.warning("broke off, going on after %d bytes: %s", progress(), error)
                time.sleep(random.uniform(0, _SOON))

    def _attempts(self, call: Callable[[], T], progress: Callable[[], int]) -> T:
        """Try until it is done, got on, or the server has been silent for too long."""
        silence, before = _Silence(self._give_up_after), progress()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unreachable),
            wait=wait_before_retry,
            stop=lambda state: silence.too_long(state) or progress() > before,
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
            unreachable = Unreachable(f"{text} ({error.code().name})")
            unreachable.retry_after = _retry_after(error)
            unreachable.busy = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            raise unreachable from error

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


class _Silence:
    """When to give up: `seconds` after the first failure; a long poll before it was no silence."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: float | None = None

    def too_long(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Unreachable) and error.busy:  # it is there, and asks to wait
            self._first = None
            return False
        if self._first is None:
            self._first = time.monotonic()
        return time.monotonic() - self._first >= self._seconds


_backoff = tenacity.wait_random_exponential(multiplier=1, max=LONGEST_WAIT)


def wait_before_retry(state: tenacity.RetryCallState) -> float:
    """Return seconds: exponential backoff with full jitter, from the first retry on.

    (AWS Architecture Blog, Exponential Backoff and Jitter, 2015.) It comes on top of what a busy
    server asks for, so that its clients do not come back together.
    """
    error = state.outcome.exception() if state.outcome else None
    hint = error.retry_after if isinstance(error, Unreachable) else 0.0
    return hint + float(_backoff(state))


def _retry_after(error: grpc.RpcError) -> float:
    """Return the seconds that a server asks to wait, 0 if it asks for nothing sensible."""
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
    if credentials.token is not None:  # gRPC never sends it over a connection in plaintext
        token = grpc.access_token_call_credentials(credentials.token)
        secure = grpc.composite_channel_credentials(secure, token)
    if credentials.folder is not None:
        options.append(("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.secure_channel(address, secure, options=options)


class _Release:
    """What came of a release so far."""

    def __init__(self) -> None:
        self.release: pb.Release | None = None
        self.data = bytearray()


def _chunks(header: pb.UpdateHeader, payload: bytes, size: int) -> Iterator[pb.UpdateChunk]:
    """Yield a payload from the header's offset on, in chunks of so many bytes."""
    first = header.offset + size
    yield pb.UpdateChunk(header=header, data=payload[header.offset : first])
    for at in range(first, len(payload), size):
        yield pb.UpdateChunk(data=payload[at : at + size])
