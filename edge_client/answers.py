"""The most that a server's answers can be, by what the client knows before it reads them.

| answer | at most |
|---|---|
| one message | MAX_MESSAGE_BYTES of grpc_connection.py |
| the plan, the task | see plan.py |
| the scaling | two numbers for each feature of the task that is standardised |
| links and payloads of a model | a snapshot in `float32 | zstd`, as a client without a model gets |
| links | one for every version after the held one, and one before them |
| payload of a delta or snapshot | the most that its codec makes of the manifest's tensors |
| updates in a bundle | MAX_UPDATES |
| computing a version from all of it | COMPUTING_SECONDS of this thread |
| the training step | MAX_STEP_BYTES of training_step.py |
| a file of the final model | max_model_file(manifest) |
| a release | MAX_FILE_BYTES of follower.py, and half of the disk that is free |
| a release, by what was sent | a quarter more than the old file, or MAX_RATIO times its bytes |
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

from featherfed.compression.buffer import Reader
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.average import MAX_UPDATES
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.update import max_payload, sketched_shapes
from featherfed.compression.importance import equal_importance
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.errors import UNKNOWN_HERE, ClientError, TooLarge
from featherfed.proto import federation_pb2 as pb

COMPUTING_SECONDS = 60.0
"""Most processor time for the links of one answer; a thousand updates of a small model take one."""
MAX_RATIO = 100
"""A .tflite is at most so many times larger than it travels; pruned ones reach a tenth of it."""

_SNAPSHOT = parse_codec("float32 | zstd")
_LINK_BYTES = 512  # more than the fields of a snapshot's link take, but for its allocation
_PARTS_TAG = pb.Bundle.PARTS_FIELD_NUMBER << 3 | 2
_FIXED = {1: 8, 5: 4}  # protobuf's wire types of fixed size, and their bytes
_LONGEST_VARINT = 10
_LARGEST_GRAPH = 16 * 2**20  # bytes: far more than a graph without weights has
_SMALL_FILE = 2**20  # bytes: what a release may have in any case


class ComputingTime:
    """Measures the processor time that this thread spends on one answer."""

    def __init__(self, seconds: float = COMPUTING_SECONDS) -> None:
        self._seconds = seconds
        self._began = time.thread_time()

    def check(self) -> None:
        """Raise WireError once the time is used up."""
        if time.thread_time() - self._began > self._seconds:
            raise WireError(f"the model takes more than {self._seconds:.0f} s to compute")


@lru_cache(maxsize=4)
def max_answer(manifest: Manifest) -> int:
    """Return the most bytes of links and payloads with which a server answers FetchModel."""
    allocation = equal_importance(sketched_shapes(manifest))
    links = _LINK_BYTES + len(allocation.levels) + len(allocation.profile)
    return max_payload(_SNAPSHOT, manifest.thawed) + links


def check_links(
    manifest: Manifest,
    held: int | None,
    version: int,
    links: Sequence[pb.Link],
    computing: ComputingTime,
) -> None:
    """Raise WireError unless `links` lead step by step from version `held` to `version`.

    Raises ClientError for a kind of link that is unknown here.
    """
    last = held
    for number, link in enumerate(links):
        computing.check()
        if link.kind not in pb.Link.Kind.values():
            raise ClientError(f"the server sends a link of kind {link.kind}, {UNKNOWN_HERE}")
        if not _follows(link, number, last) or link.version > version:
            raise WireError(f"a link to version {link.version} after version {last}")
        if link.size > _max_size(manifest, link):
            raise WireError(f"{link.size} bytes for the link to version {link.version}")
        last = link.version
    if last != version:
        raise WireError(f"the links lead to version {last} instead of {version}")


def _follows(link: pb.Link, number: int, last: int | None) -> bool:
    """Whether a link may be the one of this number, from 0, after version `last`."""
    if link.kind in (pb.Link.SEED, pb.Link.SNAPSHOT):
        return number == 0
    if link.kind == pb.Link.PARTIAL:
        return last is not None
    return last is not None and link.version == last + 1


def _max_size(manifest: Manifest, link: pb.Link) -> int:
    if link.kind == pb.Link.SEED:
        return 0
    if link.kind == pb.Link.BUNDLE:
        return max_answer(manifest)
    try:
        whole = link.kind == pb.Link.SNAPSHOT
        return _max_payload(link.codec, manifest.thawed if whole else manifest.sent)
    except CodecError as error:
        raise WireError(f"the server uses an unknown codec: {error}") from error


@lru_cache(maxsize=4)
def _max_payload(codec: str, manifest: Manifest) -> int:
    return max_payload(parse_codec(codec), manifest)


def check_bundle(payload: bytes) -> None:
    """Raise WireError if a bundle holds too many updates, before there is an object for each."""
    reader, parts = Reader(payload), 0
    while reader.remaining:
        tag = reader.varint()
        _skip_field(reader, tag & 7)
        parts += tag == _PARTS_TAG
        if parts > MAX_UPDATES:
            raise WireError(f"the server's bundle holds more than {MAX_UPDATES} updates")


def _skip_field(reader: Reader, wire_type: int) -> None:
    """Skip the value of a protobuf field."""
    if wire_type == 2:
        reader.skip(reader.varint())
    elif wire_type in _FIXED:
        reader.skip(_FIXED[wire_type])
    elif wire_type or all(reader.take(1)[0] & 0x80 for _ in range(_LONGEST_VARINT)):
        raise WireError("the server's bundle of updates is damaged")


def max_model_file(manifest: Manifest) -> int:
    """Return the most bytes of a .tflite of the final model: its weights twice, and a graph."""
    return 2 * 4 * manifest.num_values + _LARGEST_GRAPH


def check_file(file: pb.ModelFile, limit: int) -> None:
    """Raise TooLarge if a file of the final model is empty, or larger than `limit`."""
    if not 0 < file.size <= limit or not 0 < file.compressed <= limit:
        raise TooLarge(
            f"the server's model file has {file.size} bytes; at most {limit} are possible"
        )


def check_release(release: pb.Release, limit: int) -> None:
    """Raise TooLarge if a release is larger than `limit`, or has more bytes to send than it has."""
    most = release.size + release.size // 64 + 1024  # what zstd makes of random bytes
    if release.size > limit or release.compressed > min(most, limit):
        raise TooLarge(
            f"the server announces a release of {release.size} bytes in {release.compressed}; at "
            f"most {limit} are possible here, half of the room on this disk"
        )


def check_expansion(release: pb.Release, num_sent: int, num_old: int) -> None:
    """Raise WireError if a release of `num_sent` bytes becomes far too large when decompressed.

    `num_old`: the size of the file that a delta is against.
    """
    most = _SMALL_FILE + (num_old + num_old // 4 if release.delta else MAX_RATIO * num_sent)
    if release.size > most:
        raise WireError(f"{num_sent} bytes that become {release.size}; {most} are possible")
