"""Keep an unfinished model download in a file, so that the next try or process can resume it.

The file holds a line of JSON, with the request, the links that were received and a checksum of
both, and then the data. It is written when a download breaks off and after every MiB. It is not
synced, since the finished download is checked by digest. Where it cannot be written, the download
goes on in memory.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from google.protobuf.message import DecodeError

from featherfed.edge_client.errors import Rejected, TooLarge
from featherfed.edge_client.statefile import warn_unwritable
from featherfed.proto import federation_pb2 as pb

FILE_NAME = "model.part"
"""The file's name in the state directory."""

WRITE_BYTES = 2**20
"""Bytes of new data after which the file is written."""


_SMALLEST_LINK = 32  # bytes: a link holds a SHA-256
_HEAD_BYTES = 4096  # more than the first line of the file takes beside the links


class PartialDownload:
    """The links and data of one download, as far as received; used in a `with` block."""

    def __init__(self, path: Path | None, request: pb.FetchModelRequest, limit: int) -> None:
        """Start from the file at `path` if it is of the same request; None: memory only.

        `limit`: the most bytes of links and data together.
        """
        self._path = path
        self._limit = limit
        self._request = _key(request)
        self._links: list[pb.Link] = []
        self._data = bytearray()
        self._written = 0  # bytes of data in the file that belong to these links
        if path is not None:
            self._read(path)

    def __enter__(self) -> PartialDownload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.size > self._written:
            self._write()

    @property
    def size(self) -> int:
        """Bytes of data received so far."""
        return len(self._data)

    @property
    def announced(self) -> int:
        """Bytes of data of the whole download."""
        return sum(link.size for link in self._links)

    def begin(self, links: Sequence[pb.Link], offset: int) -> bool:
        """Resume at byte `offset`; return False if fewer bytes of these links were received.

        Raises TooLarge if the links and what they announce are beyond the limit, Rejected if
        their number alone is.
        """
        self._check(links)
        known = list(links)
        if offset > (self.size if known == self._links else 0):
            return False
        self._links = known
        del self._data[offset:]
        self._written = min(self._written, offset)
        return True

    def forget(self) -> None:
        """Begin from the first byte: what was received is of no use."""
        self._links, self._written = [], 0
        self._data.clear()

    def add(self, data: bytes) -> None:
        """Append received data."""
        self._data += data
        if self.size - self._written >= WRITE_BYTES:
            self._write()

    def finish(self) -> tuple[list[pb.Link], bytes]:
        """Return links and data, and delete the file."""
        if self._path is not None:
            with suppress(OSError):  # on a read-only disk the file may stay, which does no harm
                self._path.unlink(missing_ok=True)
        return self._links, bytes(self._data)

    def _check(self, links: Sequence[pb.Link]) -> None:
        # No honest server, and before there is an object for each: not worth another try.
        if len(links) * _SMALLEST_LINK > self._limit:
            raise Rejected(f"the server announces {len(links)} links, more than any model needs")
        announced = sum(link.ByteSize() + link.size for link in links)
        if announced > self._limit:
            raise TooLarge(
                f"the server announces {announced} bytes of a model; at most {self._limit} are "
                "possible"
            )

    def _read(self, path: Path) -> None:
        # A file that cannot be read is ignored: the download starts from the beginning.
        with suppress(OSError, ValueError, KeyError, DecodeError, Rejected):
            if path.stat().st_size > 2 * self._limit + _HEAD_BYTES:  # links take two digits a byte
                path.unlink()
                return
            head, _, data = path.read_bytes().partition(b"\n")
            fields = json.loads(head)
            if fields == _head(self._request, fields["links"]):
                chunk = pb.ModelChunk.FromString(bytes.fromhex(fields["links"]))
                self._check(chunk.links)
                self._links = list(chunk.links)
                self._data += data[: self.announced]
                self._written = self.size

    def _write(self) -> None:
        if self._path is None:
            return
        links = pb.ModelChunk(links=self._links).SerializeToString()
        head = json.dumps(_head(self._request, links.hex())).encode() + b"\n"
        try:
            with self._path.open("ab") as file:
                if not self._written:
                    file.truncate(0)
                    file.write(head)
                file.truncate(len(head) + self._written)
                file.write(self._data[self._written :])
        except OSError as error:
            warn_unwritable(self._path, error, "The download", "it begins anew")
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None
            return
        self._written = self.size


def _head(asked: str, links: str) -> dict[str, str | int]:
    # A changed link would let the server resume what this client then cannot.
    return {"asked": asked, "links": links, "crc32": zlib.crc32(f"{asked} {links}".encode())}


def _key(request: pb.FetchModelRequest) -> str:
    """Return the request as text, without session and offset, which change between tries."""
    asked = pb.FetchModelRequest()
    asked.CopyFrom(request)
    asked.ClearField("session")
    asked.ClearField("offset")
    return asked.SerializeToString(deterministic=True).hex()
