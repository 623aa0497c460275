"""Released model files for inference-only devices, and the differences between them.

Knows neither gRPC nor TensorFlow: the entry point passes the function that exports a model.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featherfed.compression.exchange.filedelta import encode_file
from featherfed.compression.files import scratch_of, write_whole
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import Busy, CannotStore, Refused

log = logging.getLogger(__name__)

KEPT = 16
"""Files kept of each kind; a device that has an older one gets the newest whole."""

DEFAULT_KIND = "int8"

_NAME = re.compile(r"([a-z0-9]+)-([0-9]+)-([0-9a-f]{64})\.tflite")
_DIGEST_BYTES = 32

Export = Callable[[str], tuple[int, bytes]]
"""Kind -> the newest version's number and its file; called in one thread, once per version.

Raises Refused if there is no such file of the model, Busy if there is none yet."""


@dataclass(frozen=True)
class Offer:
    """What a device downloads: `data` is a whole file or a difference, `release` describes it."""

    release: pb.Release
    data: bytes


@dataclass(frozen=True)
class _ReleaseFile:
    kind: str
    version: int
    digest: bytes
    path: Path

    def read(self) -> bytes | None:
        """Return the file's content, None if it is lost or damaged."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).digest() == self.digest else None


class Releases:
    """Exports, keeps and offers released files; safe to use from several threads.

    A file is exported when the first device asks for the newest version. All work is done by one
    thread: many devices that ask at once neither export a file twice nor occupy the threads that
    training clients wait for.
    """

    def __init__(
        self, folder: Path, kinds: Sequence[str], newest: Callable[[], int], export: Export
    ) -> None:
        """Keep files of `kinds` in `folder`, which belongs to one run and may hold some already.

        `newest` returns the run's newest version; version 0, which is untrained, is not released.
        """
        self._folder = folder
        self._kinds = tuple(kinds)
        self._newest = newest
        self._export = export
        self._kept = self._find_files()
        self._offers: dict[tuple[str, bytes, bytes], Offer] = {}  # by kind, newest and base
        self._failed: dict[str, tuple[int, Refused]] = {}
        """By kind: the newest version that gave no file, and what devices are told."""
        self._worker = ThreadPoolExecutor(1, "releases")

    def _find_files(self) -> list[_ReleaseFile]:
        for path in self._folder.glob(scratch_of(Path("*.tflite")).name):
            path.unlink(missing_ok=True)  # left by a server that was killed
        names = [(path, _NAME.fullmatch(path.name)) for path in self._folder.glob("*.tflite")]
        kept = [
            _ReleaseFile(name[1], int(name[2]), bytes.fromhex(name[3]), path)
            for path, name in names
            if name
        ]
        return sorted(kept, key=lambda one: one.version)

    def close(self) -> None:
        """End the thread once its current work is done."""
        self._worker.shutdown(cancel_futures=True)

    def offer(self, kind: str, have: bytes) -> Future[Offer | None]:
        """Return a future of what takes a device to the newest file.

        Its result is None if the device has that file, or none is released yet. `kind`: empty for
        int8. `have`: SHA-256 of the file that the device has; empty or unknown gives the whole
        file. Raises Refused, at once or as the future's exception.
        """
        kind = kind or DEFAULT_KIND
        if kind not in self._kinds:
            raise Refused(
                pb.MISSING_CAPABILITY,
                f"there are no files of the kind {kind!r}; ask for one of {', '.join(self._kinds)}",
            )
        if len(have) not in (0, _DIGEST_BYTES):
            raise Refused(pb.MALFORMED, f"{len(have)} bytes are no SHA-256 digest")
        return self._worker.submit(self._offer, kind, have)

    def _offer(self, kind: str, have: bytes) -> Offer | None:
        version = self._newest()
        if version == 0:
            return None
        if any((k.kind, k.version, k.digest) == (kind, version, have) for k in self._kept):
            return None
        newest, data = self._release(kind, version)
        if newest.digest == have:
            return None
        whole = self._encoded(newest, data, b"", b"")
        base = self._find(kind, have)
        old = base.read() if base else None
        if old is None:
            return whole
        delta = self._encoded(newest, data, have, old)
        return delta if len(delta.data) < len(whole.data) else whole

    def _encoded(self, newest: _ReleaseFile, data: bytes, have: bytes, old: bytes) -> Offer:
        """Return the newest file as a difference from `old` (digest `have`); empty: the whole."""
        key = newest.kind, newest.digest, have
        if key not in self._offers:
            payload = encode_file(data, old)
            release = pb.Release(
                version=newest.version,
                digest=newest.digest,
                size=len(data),
                compressed=len(payload),
                delta=bool(old),
            )
            self._offers[key] = Offer(release, payload)
        return self._offers[key]

    def _find(self, kind: str, digest: bytes) -> _ReleaseFile | None:
        return next((k for k in self._kept if (k.kind, k.digest) == (kind, digest)), None)

    def _release(self, kind: str, version: int) -> tuple[_ReleaseFile, bytes]:
        """Return the newest version's file; export it if there is none or it is damaged."""
        for kept in self._kept:
            if (kept.kind, kept.version) == (kind, version) and (data := kept.read()) is not None:
                return kept, data
        failed, why = self._failed.get(kind, (None, None))
        if failed == version and why is not None:
            raise why
        try:
            version, data = self._export(kind)
            return self._keep(kind, version, data), data
        except OSError as error:  # a full disk may have room again the next time
            raise CannotStore(f"no release could be written: {error}") from error
        except (CannotStore, Busy):
            raise
        except Refused as error:
            log.warning("version %d cannot be released as %s: %s", version, kind, error)
            # Recorded, so that not every device that asks makes the server fail again.
            self._failed[kind] = version, error
            raise
        except Exception as error:
            log.exception("version %d cannot be released as %s", version, kind)
            self._failed[kind] = version, self._failure(kind, version)
            raise self._failed[kind][1] from error

    def _failure(self, kind: str, version: int) -> Refused:
        return Refused(
            pb.NONE,
            f"version {version} could not be released as {kind}; the server's log says why",
        )

    def _keep(self, kind: str, version: int, data: bytes) -> _ReleaseFile:
        digest = hashlib.sha256(data).digest()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{kind}-{version:05}-{digest.hex()}.tflite"
        write_whole(path, data)
        log.info("released version %d as %s, %d bytes", version, kind, len(data))
        others = [k for k in self._kept if k.kind == kind and k.path != path]
        for old in others[: max(0, len(others) + 1 - KEPT)]:
            old.path.unlink(missing_ok=True)
            self._kept.remove(old)
        kept = _ReleaseFile(kind, version, digest, path)
        self._kept = [k for k in self._kept if k.path != path] + [kept]
        self._offers = {key: offer for key, offer in self._offers.items() if key[0] != kind}
        return kept
