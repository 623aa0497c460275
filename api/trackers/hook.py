"""What a tracker of experiments is told of a run: the one hook that all adapters implement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class RoundFacts:
    """A round that gave a version; times in seconds since the epoch, bytes of all its messages."""

    version: int
    began: float
    """When the version before was made, or the round opened if that was before this process."""
    opened: float
    closed: float
    made: float
    up: int
    down: int
    wasted: int
    """Of those, sent in vain."""
    clients: int
    """Whose updates arrived."""
    discarded: str | None = None
    """Why the round's model was not adopted."""
    scored: int | None = None
    """The newest version whose scores are known: clients evaluate a version a round later."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Its loss and metrics by name."""

    @property
    def seconds(self) -> float:
        """From the round's opening to its closing."""
        return self.closed - self.opened

    def values(self) -> dict[str, float]:
        """Return what is drawn of a round, scores apart, by name."""
        return {
            **({"seconds": self.seconds} if self.seconds else {}),  # no time passes in simulations
            "bytes/up": float(self.up),
            "bytes/down": float(self.down),
            "bytes/wasted": float(self.wasted),
            "clients": float(self.clients),
        }


class Tracker(Protocol):
    """Follows one run; called in a thread of its own, and no more once it has raised an error."""

    def start(self, run: str, settings: Mapping[str, Setting]) -> None:
        """Begin to follow a run, or go on after the server was away; `settings` by name."""

    def on_round(self, facts: RoundFacts) -> None:
        """Take up a round that gave a version; versions come in order."""

    def on_scores(self, version: int, scores: Mapping[str, float]) -> None:
        """Take up loss and metrics of a version, by name; they may come a round later."""

    def end(self, finished: bool) -> None:
        """End; `finished`: whether the run has ended, else the server goes away before that."""


def score_values(scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores as they are drawn: the loss, and metrics under "score/"; finite ones alone."""
    return {
        name if name == "loss" else f"score/{name}": float(value)
        for name, value in scores.items()
        if math.isfinite(value)
    }
