"""What a run's metrics say, as frozen objects (docs/metrics.md has every key)."""

from __future__ import annotations

from dataclasses import dataclass


class ReportError(ValueError):
    """A report that cannot be made; the message names the file and what to do."""


@dataclass(frozen=True)
class Traffic:
    """Bytes in one direction; ``message`` includes the payload, control and retries are apart."""

    payload: int = 0
    message: int = 0
    control: int = 0
    retry: int = 0

    @property
    def sent(self) -> int:
        """Everything that went over the link."""
        return self.message + self.control + self.retry

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.payload + other.payload,
            self.message + other.message,
            self.control + other.control,
            self.retry + other.retry,
        )


@dataclass(frozen=True)
class Update:
    """What one client did in one round; ``None`` where it was not measured."""

    client: str
    num_examples: int
    accuracy: float | None
    train_loss: float | None
    uplink: Traffic
    downlink: Traffic


@dataclass(frozen=True)
class Refusal:
    """An update that the server refused."""

    client: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Round:
    """One closed round; ``updates`` holds only those that were aggregated."""

    number: int
    accuracy: float | None
    loss: float | None
    seconds: float | None
    version: int
    digest: str
    sparsity: float | None
    updates: tuple[Update, ...]
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class Model:
    """One exported file."""

    file: str
    kind: str
    size: int
    gzip_size: int | None
    accuracy: float | None
    num_examples: int | None


@dataclass(frozen=True)
class Final:
    """How a finished run ended."""

    accuracy: float | None
    loss: float | None
    digest: str
    version: int
    sparsity: float | None
    seconds: float | None
    deliveries: tuple[tuple[str, Traffic], ...]
    uplink: Traffic
    downlink: Traffic
    models: tuple[Model, ...]


@dataclass(frozen=True)
class Run:
    """A whole metrics.json; ``final`` is ``None`` while the run still goes."""

    featherfed: str
    name: str
    dataset: str
    num_test_examples: int
    num_parameters: int
    float32_bytes: int
    settings: tuple[tuple[str, str], ...]
    started: str
    machine: tuple[tuple[str, str], ...]
    rounds: tuple[Round, ...]
    final: Final | None

    @property
    def client_names(self) -> tuple[str, ...]:
        """Every client whose update counted, in the order of first appearance."""
        return tuple(dict.fromkeys(u.client for r in self.rounds for u in r.updates))
