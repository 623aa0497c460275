"""The faults of a run: what they are, and how they are drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SERVER = "server"


class Kind(StrEnum):
    """What goes wrong."""

    KILL = "kill"
    """A process dies; what it has written stays."""
    POWER = "power"
    """Its machine loses power: what is not synced may be lost or torn."""
    CUT = "cut"
    """A connection breaks; each side notices after a time of its own."""
    SILENCE = "silence"
    """Nothing gets through between a client, or all, and the server."""
    SLOW = "slow"
    """A client's link is slow for a while."""
    FREEZE = "freeze"
    """A process does not run for a while (SIGSTOP, suspend)."""
    FULL = "full"
    """A disk takes nothing for a while."""
    CLOCK = "clock"
    """A machine's clock is set."""
    STOP = "stop"
    """The server is told to stop, and started again."""
    RESTORE = "restore"
    """The server is put back to a backup made before."""
    LOSE = "lose"
    """A client's device is replaced: its state is gone."""
    REPEAT = "repeat"
    """A proxy sends a call a second time."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    It happens at second `at` of the run, or at the `nth` time that the target reaches `place`.
    `seconds`: how long it lasts, or until the other side notices. `amount`: see each kind.
    """

    kind: Kind
    target: str
    at: float = 0.0
    place: str = ""
    nth: int = 0
    seconds: float = 0.0
    amount: float = 0.0

    def __str__(self) -> str:
        when = f"at {self.place} {self.nth}" if self.place else f"at {self.at:.3f} s"
        lasts = f" for {self.seconds:.3f} s" if self.seconds else ""
        amount = f" ({self.amount:.3f})" if self.amount else ""
        return f"{self.kind} {self.target} {when}{lasts}{amount}"

    @property
    def end(self) -> float:
        """The second of the run at which it is over, if it has a time."""
        return 0.0 if self.place else self.at + self.seconds


_DEADLY = (Kind.KILL, Kind.KILL, Kind.POWER, Kind.POWER, Kind.CUT, Kind.CUT)
"""Kinds that are drawn more often than others."""
# The places at which a process may die, and about how often it passes each in a round.
_SERVER_PLACES = {"step": 250, "sql": 120, "commit": 12, "committed": 12}
_CLIENT_PLACES = {
    "wait": 12, "call": 4, "fsync": 6, "synced": 6, "replace": 3, "unlink": 5, "step": 15,
}  # fmt: skip


def draw_faults(
    draw: random.Random, clients: Sequence[str], rounds: int, seconds: float
) -> list[Fault]:
    """Return the faults of a run of about `seconds`: of a few kinds only, so that these meet."""
    kinds = draw.sample([*Kind, *_DEADLY], draw.randint(1, 6))
    count = draw.choice((1, 2, 4, 8, 12, 16))
    faults = [_draw_fault(draw, draw.choice(kinds), clients, rounds, seconds) for _ in range(count)]
    return sorted(faults, key=lambda fault: (fault.at, fault.place, fault.nth))


def _draw_fault(
    draw: random.Random, kind: Kind, clients: Sequence[str], rounds: int, seconds: float
) -> Fault:
    at, client = draw.uniform(0, seconds), draw.choice(clients)
    anyone = draw.choice([SERVER, SERVER, *clients])
    short = draw.choice((draw.uniform(0, 2), draw.uniform(0, 20), draw.uniform(0, 120)))
    shape = draw.uniform(0, 1)
    if kind in (Kind.KILL, Kind.POWER):
        return _draw_death(draw, kind, anyone, rounds)
    if kind is Kind.CUT:
        notice, other = (draw.choice((0.0, draw.uniform(0, 1), draw.uniform(0, 60))) for _ in "12")
        nth = draw.randint(1, 25 * rounds)
        return Fault(kind, client, place="message", nth=nth, seconds=notice, amount=other)
    if kind is Kind.FREEZE and anyone != SERVER and shape < 0.5:
        return Fault(kind, anyone, place="call", nth=draw.randint(1, 4 * rounds), seconds=short)
    if kind is Kind.SILENCE and shape < 0.5:
        return Fault(kind, client, place="message", nth=draw.randint(1, 25 * rounds), seconds=short)
    if kind is Kind.REPEAT:
        after, nth = draw.choice((0.0, shape, 30 * shape)), draw.randint(1, 2 * rounds)
        return Fault(kind, client, place="request", nth=nth, seconds=after)
    return {
        Kind.SILENCE: Fault(kind, draw.choice(["all", *clients]), at, seconds=short),
        Kind.SLOW: Fault(kind, client, at, seconds=short, amount=10 ** (0.5 + 2.5 * shape)),
        Kind.FREEZE: Fault(kind, anyone, at, seconds=short),
        Kind.FULL: Fault(kind, anyone, at, seconds=short),
        Kind.CLOCK: Fault(
            kind,
            draw.choice([SERVER, SERVER, anyone]),
            at,
            amount=draw.choice((-1, 1)) * 10 ** (8 * shape),
        ),
        Kind.STOP: Fault(kind, SERVER, at),
        Kind.RESTORE: Fault(kind, SERVER, at, seconds=shape * seconds / 2),
        Kind.LOSE: Fault(kind, client, at),
    }[kind]


def _draw_death(draw: random.Random, kind: Kind, target: str, rounds: int) -> Fault:
    places = _SERVER_PLACES if target == SERVER else _CLIENT_PLACES
    if kind is Kind.POWER and target == SERVER:
        places = {"commit": 12, "step": 250}
    place = draw.choice(list(places))
    nth = draw.randint(1, places[place] * rounds)
    return Fault(kind, target, place=place, nth=nth, seconds=draw.uniform(0, 10))
