"""The calls of an inference-only device: downloads of releases over gRPC."""

from __future__ import annotations

from featherfed.edge_client.answers import check_release
from featherfed.edge_client.errors import Rejected
from featherfed.edge_client.grpc_connection import TRANSFER_TIMEOUT, GrpcConnection
from featherfed.proto import federation_pb2 as pb


class GrpcReleaseSource(GrpcConnection):
    """Implements `ReleaseSource` by gRPC; a download that broke off is resumed."""

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
            first = release is None
            if release is None:
                release = chunk.release
                check_release(release, limit)
                if chunk.offset > (len(got.data) if release == got.release else 0):
                    raise Rejected(
                        f"{self._address}: the server resumes a transfer that never began"
                    )
                got.release = release
                del got.data[chunk.offset :]
            self._check_chunk(chunk, first, len(got.data), release.compressed)
            got.data += chunk.data


class _PartialRelease:
    """The part of a release that was received so far."""

    def __init__(self) -> None:
        self.release: pb.Release | None = None
        self.data = bytearray()
