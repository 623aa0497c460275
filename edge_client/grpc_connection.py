"""A gRPC connection to a server: retried calls whose errors are those of errors.py.

No other module of the client imports grpc.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from featherfed.edge_client.credentials import SERVER_NAME, Credentials
from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask, TooLarge, Unreachable
from featherfed.edge_client.handshake import HandshakeCheck
from featherfed.edge_client.retry import Retry
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.proto.peer_text import printable

CALL_TIMEOUT = 60.0
"""Seconds that a call without a payload may take."""
TRANSFER_TIMEOUT = 3600.0
"""Seconds: long enough for a model over a thin link; keepalive detects a dead one sooner."""

MAX_MESSAGE_BYTES = 2 * 2**20
"""Most bytes of one message from a server: a plan of a large model, or a chunk with its links."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
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
}

# gRPC gives an answer that it did not read, being too large, the status of a busy server.
_UNREAD = re.compile(r"message larger than max|metadata size exceeds")

RETRY_AFTER = "retry-after"
"""Key of the trailing metadata in which a busy server asks to wait, in seconds."""
LONGEST_HINT = 300.0
"""Most seconds that a client waits on a server's request."""

T = TypeVar("T")


class GrpcConnection:
    """A connection that retries calls and translates their errors; subclasses add the calls."""

    def __init__(
        self, address: str, give_up_after: float, credentials: Credentials | None = None
    ) -> None:
        """Connect to `address` (host:port); give up when it is silent for `give_up_after` seconds.

        `credentials`: None for plaintext.
        """
        self._address = address
        self._retry = Retry(give_up_after)
        self._handshake = HandshakeCheck(address, credentials)
        self._channel = _channel(address, credentials)
        self._stub = pb_grpc.FederationStub(self._channel)

    def status(self) -> pb.StatusReply:
        """Return the run's progress; needs no session."""
        return self._call(lambda: self._stub.GetStatus(pb.StatusRequest(), timeout=5))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _check_chunk(self, chunk: Any, first: bool, received: int, announced: int) -> None:
        """Raise Rejected for a message of a stream that brings nothing, or more than announced."""
        if received + len(chunk.data) > announced:
            raise Rejected(f"{self._address}: the server sends more than it announced")
        if not first and not chunk.data:
            raise Rejected(f"{self._address}: the server sends messages without data")

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
        """Return the error of errors.py that corresponds to gRPC's `error`."""
        details = error.details() or ""
        text = f"{self._address}: {printable(details)}"
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return SessionLost(text)
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return StaleTask(text)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return Rejected(f"{text} The server is older than this client: update featherfed on it")
        if error.code() in _FINAL:
            return Rejected(text)
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _UNREAD.search(details):
            return TooLarge(f"{text}; no answer of a server is as large as that")
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
