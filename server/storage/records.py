"""What the stores hold, a dataclass for each kind of row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from featherfed.compression.importance import Allocation
from featherfed.proto import federation_pb2 as pb

Scores = dict[str, float]
"""The mean loss of a model, and each metric of the task by name."""

OTHERS = "(others)"
"""Stands for all further names where no more are counted apart; no client can have this name."""


@dataclass(frozen=True)
class RunRecord:
    """A run's identity; `started` in seconds since the epoch."""

    name: str
    fingerprint: str
    """SHA-256 of the settings that must not change while the run lasts, and of its model."""
    started: float


@dataclass(frozen=True)
class StoredPlan:
    """The plan that clients get; `seeded`: version 0 is what the plan's seed gives."""

    plan: pb.Plan
    seeded: bool


@dataclass(frozen=True)
class ClientRecord:
    """A client that has joined: its newest session and what it said of itself."""

    session: int
    num_examples: int
    stages: frozenset[str]
    """Names of the codec stages it knows."""
    runtime: str
    """What it trains with, such as keras or litert; empty if it did not say."""
    num_held_out: int = 0
    """How many further examples it evaluates models on."""


@dataclass(frozen=True)
class RoundRecord:
    """A round's opening and closing time, in seconds since the epoch, and its cohort by name."""

    round: int
    opened: float
    closed: float | None
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class JournaledUpdate:
    """An accepted update; `payload` is None once its round is aggregated.

    `prediction` (of the example that is shown, JSON) and `scores` are of the client's own model on
    the server's data set, where clients' models are evaluated. `before` and `after` are sums
    (tasks/scoring.py, little-endian float32) on the client's own held-out examples, of the version
    that it started from and of its model; empty if it sent none.
    """

    round: int
    client: str
    slot: int
    codec: str
    num_examples: int
    payload: bytes | None
    train_loss: float | None = None
    prediction: str | None = None
    scores: Scores | None = None
    before: bytes = b""
    after: bytes = b""


@dataclass(frozen=True)
class UpdateNorms:
    """L2 norms of a decoded update.

    `whole`: of all tensors; `trainable`: of the trainable ones; `state`: of the values that it
    gives the tensors that are not trained.
    """

    whole: float
    trainable: float
    state: float


@dataclass(frozen=True)
class AggregationRecord:
    """What a round's aggregation did; norms are L2, None without a limit."""

    clip: float | None = None
    """The largest norm that an update may have."""
    clipped: int | None = None
    """How many updates were scaled down to it; not recorded in private runs."""
    left_out: tuple[str, ...] = ()
    """Clients whose updates did not count at all."""
    next_clip: float | None = None
    """The next round's clip in a private run."""
    epsilon: float | None = None
    """Privacy spent so far."""


@dataclass(frozen=True)
class ModelVersion:
    """One model version; `payload` leads from the version before to this one, empty for version 0.

    `kind`: "delta" for an update encoded with `codec`, "bundle" for the clients' own updates.
    `allocation`: the importance of coordinates that is known from this version on.
    """

    version: int
    digest: bytes
    kind: str
    codec: str
    sparsity: float
    payload: bytes
    allocation: Allocation | None = None
    scores: Scores | None = None


class VersionScores(NamedTuple):
    """How good a model version is; None if that is not known."""

    version: int
    scores: Scores | None


class VersionSummary(NamedTuple):
    """A model version without its payload, of which `size` is the number of bytes."""

    version: int
    digest: bytes
    size: int
    scores: Scores | None


class RoundBytes(NamedTuple):
    """Message bytes of one round, and how many models were downloaded whole in it."""

    up: int
    down: int
    downloads: int


@dataclass(frozen=True)
class LedgerEntry:
    """Bytes sent; `message_bytes` include the payload, protobuf and gRPC framing."""

    round: int
    client: str
    direction: str
    """uplink or downlink."""
    kind: str
    """transfer, control, retry, release or release_retry."""
    payload_bytes: int
    message_bytes: int


@dataclass(frozen=True)
class RefusalRecord:
    """How often calls or updates of a client were refused for one reason in a round.

    `detail`: of the last refusal; `first` and `last`: when, in seconds since the epoch.
    """

    round: int
    client: str
    reason: str
    """A name of pb.Reason."""
    count: int
    detail: str
    first: float
    last: float


@dataclass(frozen=True)
class StoredChunk:
    """A part of an unfinished upload: `data` begins at byte `at` of a payload of `size` bytes.

    `digest` (the header's) and `size` tell it from other updates of the client's round.
    `message_bytes`: wire bytes of the messages that carried `data`.
    """

    client: str
    at: int
    round: int
    digest: bytes
    size: int
    message_bytes: int
    data: bytes


class TransferredBytes(NamedTuple):
    """How much of a transfer has arrived or was sent."""

    payload: int = 0
    message: int = 0
    """With protobuf and gRPC framing."""


@dataclass(frozen=True)
class DownloadKey:
    """Names one download: a client has one of a kind at a time.

    `kind`: transfer (of a model) or release; `digest`: of the message that describes the data.
    """

    client: str
    kind: str
    round: int
    digest: bytes
