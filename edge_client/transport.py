"""The calls that a session makes to a server; grpc_transport.py implements them."""

from __future__ import annotations

from typing import Protocol

from featherfed.proto import federation_pb2 as pb

CHUNK_BYTES = 64 * 1024
"""Most bytes of an update in one message."""
DIGEST_PREFIX_BYTES = 8
"""Bytes of a SHA-256 by which a client names a version or an update to the server."""


class Transport(Protocol):
    """A connection to a server; its methods raise Rejected, SessionLost, StaleTask, Unreachable."""

    def get_task(self, client: str) -> pb.GetTaskReply:
        """Return what the run learns, for the client of this name to load its data by."""

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Join the run; return the session and the plan."""

    def next_task(self, session: int, has_scaling: bool = False) -> pb.NextTaskReply:
        """Return the next task, waiting for it half a minute at most.

        `has_scaling`: the client knows how its data are standardised, or need not know it.
        """

    def fetch_model(self, request: pb.FetchModelRequest, limit: int) -> tuple[list[pb.Link], bytes]:
        """Return the links that lead to a version, and their payloads concatenated in order.

        Raises TooLarge if both together are announced to have more than `limit` bytes.
        """

    def fetch_step(self, session: int, step: pb.Step) -> bytes:
        """Return the announced training step, compressed."""

    def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        """Send an update from byte `header.offset` on."""

    def resume_update(self, header: pb.UpdateHeader) -> int:
        """Return how many bytes of an update the server already has."""

    def fetch_model_file(
        self, request: pb.FetchModelFileRequest, limit: int
    ) -> tuple[pb.ModelFile, bytes] | None:
        """Return a file of the final model and its bytes as they travel; None: there is none yet.

        Raises TooLarge if more than `limit` bytes are announced for either.
        """

    def report_ranges(self, report: pb.RangesReport) -> None:
        """Tell the ranges of the final model's values."""

    def heartbeat(self, session: int, timeout: float) -> None:
        """Tell the server that the client is alive; never retried."""

    def report_evaluation(self, report: pb.EvaluationReport) -> None:
        """Tell how good the final model is on the client's own examples; repeating it is harmless.

        Gives up after a minute, as nothing depends on it.
        """

    def close(self) -> None:
        """Close the connection."""
