"""What the store holds, a dataclass for each kind of row."""

from __future__ import annotations

from dataclasses import dataclass

from featherfed.compression.importance import Allocation


@dataclass(frozen=True)
class Entry:
    """One line of the ledger; `message_bytes` hold the payload, protobuf and gRPC framing."""

    round: int
    client: str
    direction: str
    kind: str
    payload_bytes: int
    message_bytes: int


@dataclass(frozen=True)
class Version:
    """One model version; `payload` leads to it from the one before, empty for version 0.

    It is a delta in `codec`, or the clients' own updates (`kind` "bundle"). `allocation` is what is
    known of importance from then on.
    """

    version: int
    digest: bytes
    kind: str
    codec: str
    sparsity: float
    payload: bytes
    allocation: Allocation | None = None
    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Member:
    """A client that has joined: its newest session, its examples, the codec stages it knows."""

    session: int
    num_examples: int
    stages: frozenset[str]


@dataclass(frozen=True)
class Totals:
    """What was counted since the run began."""

    bytes: dict[tuple[str, str], tuple[int, int]]
    """Payload and message bytes by direction and kind."""
    accepted: int
    duplicates: int
    refusals: dict[str, int]
    """By pb.Reason's names."""
    loss: float | None
    storage_failing: bool


@dataclass(frozen=True)
class Update:
    """One journaled update."""

    round: int
    client: str
    slot: int
    codec: str
    num_examples: int
    payload: bytes | None
    train_loss: float | None = None
    train_accuracy: float | None = None
    accuracy: float | None = None
    prediction: str | None = None


@dataclass(frozen=True)
class Norms:
    """L2 norms of a decoded update: all of it, what is trained of it, and what its state became."""

    whole: float
    trainable: float
    state: float


@dataclass(frozen=True)
class Facts:
    """What a round's aggregation did; norms are L2, None where there is no such thing.

    `clip` is the most that an update's norm may be, `clipped` counts the updates that were scaled
    down to it, `left_out` names those that did not count at all. `next_clip` and `epsilon` are of
    private runs, which tell neither of the others.
    """

    clip: float | None = None
    clipped: int | None = None
    left_out: tuple[str, ...] = ()
    next_clip: float | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class Piece:
    """A piece of an update's payload, `at` bytes from its beginning; the update is `size` long."""

    client: str
    at: int
    round: int
    digest: bytes
    size: int
    message_bytes: int
    data: bytes


@dataclass(frozen=True)
class Sent:
    """How much a client was sent of one download, from its beginning on."""

    client: str
    kind: str
    round: int
    digest: bytes
    payload_bytes: int = 0
    message_bytes: int = 0
