"""Keep the newest .tflite of a run on a device that only infers: fetch, check, replace.

Knows neither gRPC nor the content of the files. A process that is killed at any moment leaves a
complete file that the server has released.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.filedelta import decode_file
from featherfed.compression.files import lock_file, scratch_of, write_whole
from featherfed.edge_client.answers import check_expansion
from featherfed.edge_client.errors import BadRelease, ClientError
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 * 2**20
"""Most bytes of a release, compressed or not; protects the device's memory."""

POLL_SECONDS = 20
"""How long the server may hold a request for the next release."""
_SHORT_POLL = 1.0  # seconds; after a shorter poll the device pauses, and its disk rests

_KIND = re.compile(r"[a-z0-9]{1,16}")


class ReleaseSource(Protocol):
    """Delivers releases; raises Rejected and Unreachable."""

    def fetch_release(
        self, request: pb.FetchReleaseRequest, limit: int
    ) -> tuple[pb.Release, bytes] | None:
        """Return a release and its data, each at most `limit` bytes; None if nothing is newer.

        Raises TooLarge before it reads more.
        """


@dataclass(frozen=True)
class Swap:
    """A replaced file: its version, SHA-256, bytes received for it and its size in bytes."""

    version: int
    digest: bytes
    received: int
    size: int


class ModelFile:
    """DIR/model_KIND.tflite, replaced atomically, by one process at a time."""

    def __init__(self, directory: Path, kind: str) -> None:
        """Lock `directory`, made if need be; raise ClientError if it cannot be used."""
        if not _KIND.fullmatch(kind):
            raise ClientError(f"{kind!r} is no kind of file; use int8, dynamic, float16 or float32")
        self.path = directory / f"model_{kind}.tflite"
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(directory)
            scratch_of(self.path).unlink(missing_ok=True)  # left by a process that was killed
        except OSError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def read(self) -> bytes:
        """Return the file's content; b"" if there is none, or it is too large for a release."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise self._unusable(error) from error
        return data if len(data) <= MAX_FILE_BYTES else b""

    def room(self) -> int:
        """Return the most bytes that a new file may have: half of what is free on its disk."""
        try:
            return min(MAX_FILE_BYTES, shutil.disk_usage(self._directory).free // 2)
        except OSError as error:
            raise self._unusable(error) from error

    def replace(self, data: bytes) -> None:
        """Replace the file by `data`; it is synced to disk on return."""
        try:
            write_whole(self.path, data)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ClientError:
        return ClientError(
            f"cannot keep a model in {self._directory}: {error.strerror}; make room or choose "
            "another --model-dir"
        )


def _lock(directory: Path) -> IO[bytes]:
    try:
        return lock_file(directory / ".lock")
    except BlockingIOError as error:
        raise ClientError(
            f"another process follows in {directory}; stop it or choose another --model-dir"
        ) from error


class Follower:
    """Replaces a model file by each new release of a source."""

    def __init__(
        self,
        device: str,
        kind: str,
        source: ReleaseSource,
        file: ModelFile,
        on_swap: Callable[[Swap], None] = lambda swap: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device = device
        self._kind = kind
        self._source = source
        self._file = file
        self._on_swap = on_swap
        self._pause = pause

    def run(self, once: bool = False) -> None:
        """Follow for ever, or with `once` until there is a file and it is the newest.

        Raises BadRelease if the server sends another file than it announces, ClientError if the
        file cannot be written, and the source's errors.
        """
        while True:
            began = time.monotonic()
            swap = self.refresh(0 if once else POLL_SECONDS)
            if once and (swap or self._file.read()):
                return
            if time.monotonic() - began < _SHORT_POLL:
                self._pause(random.uniform(1, 2) * _SHORT_POLL)

    def refresh(self, wait_seconds: int = 0) -> Swap | None:
        """Replace the file if there is a newer release, waiting up to `wait_seconds` for one.

        The file's digest is computed anew each time, so a damaged or edited file is replaced too.
        """
        old = self._file.read()
        have = hashlib.sha256(old).digest() if old else b""
        try:
            return self._fetch(old, have, wait_seconds)
        except WireError as error:
            if not old:
                raise BadRelease(f"the server's file is not what it announced: {error}") from error
            log.warning("the delta does not give the announced file (%s); fetching it whole", error)
        with suppress(WireError):
            return self._fetch(b"", b"", 0)
        raise BadRelease("the server's file is not what it announced, not even whole")

    def _fetch(self, old: bytes, have: bytes, wait_seconds: int) -> Swap | None:
        request = pb.FetchReleaseRequest(
            device=self._device, kind=self._kind, have_digest=have, wait_seconds=wait_seconds
        )
        found = self._source.fetch_release(request, self._file.room())
        if found is None:
            return None
        release, payload = found
        if release.digest == have:
            return None
        data = decode_release(release, payload, old)
        self._file.replace(data)
        swap = Swap(release.version, release.digest, len(payload), len(data))
        self._on_swap(swap)
        return swap


def decode_release(release: pb.Release, payload: bytes, old: bytes) -> bytes:
    """Return the file decoded from `payload`; raise WireError unless it is the announced one.

    `old`: the file that the payload is a delta against, if `release.delta`.
    """
    if not 0 < release.size <= MAX_FILE_BYTES:
        raise WireError(f"{release.size} bytes announced; 1 to {MAX_FILE_BYTES} are possible")
    check_expansion(release, len(payload), len(old))
    data = decode_file(payload, release.size, old if release.delta else b"")
    if hashlib.sha256(data).digest() != release.digest:
        raise WireError("another digest than announced")
    return data
