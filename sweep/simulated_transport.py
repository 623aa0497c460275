"""What clients of a simulated run ask for that such a run does not have: files, delays, faults."""

from __future__ import annotations

from featherfed.edge_client.errors import Rejected
from featherfed.proto import federation_pb2 as pb

_NO_FILES = "a simulated run has no files of its model"


class SimulatedTransport:
    """The part of a client's transport that is the same wherever its calls go."""

    def fetch_model_file(
        self, request: pb.FetchModelFileRequest, limit: int
    ) -> tuple[pb.ModelFile, bytes] | None:
        """Raise Rejected: a simulated run makes no files for its clients."""
        raise Rejected(_NO_FILES)

    def report_ranges(self, report: pb.RangesReport) -> None:
        """Raise Rejected: as for `fetch_model_file`."""
        raise Rejected(_NO_FILES)

    def heartbeat(self, session: int, timeout: float) -> None:
        """Do nothing: the clock stands still, so no client is ever lost."""

    def resume_update(self, header: pb.UpdateHeader) -> int:
        """Return 0: no upload breaks off on one machine."""
        return 0

    def close(self) -> None:
        """Do nothing."""
