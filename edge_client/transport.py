"""What a session needs of a connection to the server; grpc_transport.py implements it."""

from __future__ import annotations

from typing import Protocol

from featherfed.proto import federation_pb2 as pb

CHUNK_BYTES = 64 * 1024


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
        """Send an update from `header.offset` on."""

    def resume_update(self, header: pb.UpdateHeader) -> int:
        """Return how much of an update the server has, if its sending may have broken off."""

    def heartbeat(self, session: int, timeout: float) -> None:
        """Say that the client is alive, once: whoever beats on does not try again."""

    def close(self) -> None:
        """End the connection."""
