"""A run as it is drawn from a seed: settings, clients, sizes of chunks, and faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from featherfed.simulator.faults import Fault, Kind, draw_faults

SKETCH = "balanced"
ERROR_FEEDBACK = "topk(0.1) | quantize(4) | zstd"
DENSE = "quantize(8) | zstd"


@dataclass(frozen=True)
class Member:
    """One client: how it trains, and what it is."""

    name: str
    seconds: float
    """Seconds that a round's training takes."""
    old: bool = False
    """Whether it is of a version without sketches, which sends no runtime and unknown fields."""
    num_examples: int = 100


@dataclass(frozen=True)
class Scenario:
    """All that makes a run, but for delays."""

    seed: int
    rounds: int
    members: tuple[Member, ...]
    uplink: str
    broadcast: str
    prunes: bool
    """Whether every round has a mask, which both sides work out."""
    fraction: float
    """Share of the clients that a round samples, where it does not wait for all."""
    exact: bool
    """Whether every round waits for every client, so that the result does not depend on faults."""
    deadline: float
    """Seconds that a round takes at most, where it does not wait for every client."""
    heartbeat: int
    chunk: int
    """Bytes of a message's data, so that the small model needs several."""
    faults: tuple[Fault, ...]
    evaluates: bool = False
    """Whether the server has no data, and clients say how good versions are."""

    @property
    def undisturbed(self) -> Scenario:
        """The same run without faults, and with the delays of seed 0."""
        members = tuple(replace(member, seconds=1.0) for member in self.members)
        return replace(
            self,
            seed=0,
            members=members,
            fraction=1.0,
            deadline=30.0,
            heartbeat=0,
            chunk=64 * 1024,
            faults=(),
        )

    @property
    def keeps_residuals(self) -> bool:
        """Whether clients keep what the codec lost, which a lost state takes away."""
        return (
            self.uplink != SKETCH
            or self.broadcast != "auto"
            or len(self.members) < 3
            or any(member.old for member in self.members)
        )

    @property
    def has_one_result(self) -> bool:
        """Whether the run must end with the undisturbed run's model."""
        loss = {Kind.FULL, Kind.LOSE, Kind.RESTORE}
        return self.exact and not (
            self.keeps_residuals and any(fault.kind in loss for fault in self.faults)
        )

    def settings(self) -> dict[str, Any]:
        """Return the run file's values."""
        count = len(self.members)
        clients: dict[str, Any] = {"minimum": count, "heartbeat": self.heartbeat}
        if self.exact:
            clients |= {"quorum": 1.0, "deadline": 1e6, "patience": 1e6}
        else:
            clients |= {"quorum": 0.6, "deadline": self.deadline, "patience": 5.0}
            clients |= {"fraction": self.fraction, "over_selection": 1.5}
        return {
            "name": "simulated",
            "rounds": self.rounds,
            "server": {"stay": True, "linger": 5},
            "clients": clients,
            "compression": {"uplink": self.uplink, "broadcast": self.broadcast},
            "optimization": {"method": "prune" if self.prunes else "none"},
            "evaluation": {"dataset": None if self.evaluates else "simulated"},
        }


def draw_scenario(seed: int, rounds: int) -> Scenario:
    """Return the run of a seed."""
    draw = random.Random(f"{seed}: scenario")
    count = draw.choice((1, 2, 3, 3, 4))
    slow = draw.choice((0.5, 2.0, 2.0, 10.0))
    has_old = draw.random() < 0.2
    members = tuple(
        Member(
            f"c{number}",
            draw.uniform(0.2, slow),
            old=has_old and number == 0,
            num_examples=100 + 10 * number,
        )
        for number in range(count)
    )
    faults = draw_faults(draw, [member.name for member in members], rounds, rounds * (1.5 + slow))
    return Scenario(
        seed,
        rounds,
        members,
        draw.choice((SKETCH, SKETCH, ERROR_FEEDBACK, DENSE)),
        draw.choice(("auto", "auto", "aggregate")),
        rounds > 2 and draw.random() < 0.2,
        draw.choice((0.5, 1.0)),
        draw.random() < 0.6,
        draw.choice((5.0, 30.0)),
        draw.choice((0, 0, 2)),
        draw.choice((64 * 1024, 256, 100)),
        tuple(faults),
        evaluates=seed % 3 == 2,
    )
