"""What came of a model's download that broke off, for the next try or the next process.

The file is a head, a line of JSON that says what was asked for and which links came, and then the
data. It is written when a download breaks off and after every MiB. It need not be synced: what
comes of it is checked by digest, like any download, and else fetched anew. Where it cannot be
written, the download goes on in memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from google.protobuf.message import DecodeError

from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)

PARTIAL = "model.part"
"""Its name in the state directory."""

WRITE_BYTES = 2**20


class Partial:
    """The links and the data of one download as far as they came; use it as a context manager."""

    def __init__(self, path: Path | None, request: pb.FetchModelRequest) -> None:
        """Go on with what is in `path`, if that came for the same request; None: only in memory."""
        self._path = path
        self._asked = _key(request)
        self._links: list[pb.Link] = []
        self._data = bytearray()
        self._written = 0  # bytes of data in the file, if it has these links
        if path is not None:
            self._read(path)

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.size > self._written:
            self._write()

    @property
    def size(self) -> int:
        """Bytes of data so far."""
        return len(self._data)

    @property
    def announced(self) -> int:
        """Bytes of data in all."""
        return sum(link.size for link in self._links)

    def begin(self, links: Iterable[pb.Link], offset: int) -> bool:
        """Go on at `offset`; return False if that is not in what came before of these links."""
        known = list(links)
        if offset > (self.size if known == self._links else 0):
            return False
        self._links = known
        del self._data[offset:]
        self._written = min(self._written, offset)
        return True

    def add(self, data: bytes) -> None:
        """Take what came."""
        self._data += data
        if self.size - self._written >= WRITE_BYTES:
            self._write()

    def finish(self) -> tuple[list[pb.Link], bytes]:
        """Return links and data, and forget them."""
        if self._path is not None:
            with suppress(OSError):  # on a disk that has become read-only it is of no use either
                self._path.unlink(missing_ok=True)
        return self._links, bytes(self._data)

    def _read(self, path: Path) -> None:
        # A file that cannot be read or used is as good as none.
        with suppress(OSError, ValueError, KeyError, DecodeError):
            head, _, data = path.read_bytes().partition(b"\n")
            facts = json.loads(head)
            if facts["asked"] == self._asked:
                chunk = pb.ModelChunk.FromString(bytes.fromhex(facts["links"]))
                self._links = list(chunk.links)
                self._data += data[: self.announced]
                self._written = self.size

    def _write(self) -> None:
        if self._path is None:
            return
        links = pb.ModelChunk(links=self._links).SerializeToString()
        head = json.dumps({"asked": self._asked, "links": links.hex()}).encode() + b"\n"
        try:
            with self._path.open("ab") as file:
                if not self._written:
                    file.truncate(0)
                    file.write(head)
                file.truncate(len(head) + self._written)
                file.write(self._data[self._written :])
        except OSError as error:
            log.warning(
                "cannot write %s: %s; make room or allow writing there. The download goes on in "
                "memory; should this process end before that, it begins anew",
                self._path, error.strerror, extra={"event": "state_unsaved", "file": PARTIAL},
            )  # fmt: skip
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None
            return
        self._written = self.size


def _key(request: pb.FetchModelRequest) -> str:
    """Return the request as text, but for the session, which changes."""
    asked = pb.FetchModelRequest()
    asked.CopyFrom(request)
    asked.ClearField("session")
    asked.ClearField("offset")
    return asked.SerializeToString(deterministic=True).hex()
