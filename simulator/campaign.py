"""Many seeds, in several processes, and figures of what they met."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from multiprocessing import get_context
from typing import Any

from featherfed.simulator.simulation import Simulation
from featherfed.simulator.world import Result

SEEDS_PER_TASK = 10


@dataclass
class Campaign:
    """What many runs came to."""

    rounds: int
    processes: int
    runs: int = 0
    steps: int = 0
    simulated_seconds: float = 0.0
    slowest_recovery: float = 0.0
    seconds: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)
    failures: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count a run."""
        self.runs += 1
        self.steps += result.steps
        self.simulated_seconds += result.simulated_seconds
        self.slowest_recovery = max(self.slowest_recovery, result.recovery_seconds)
        self.happened.update(result.happened)
        if result.violation is not None:
            self.failures.append(result)

    def figures(self) -> dict[str, Any]:
        """Return the figures by name, seconds and hours as said there."""
        return {
            "runs": self.runs,
            "rounds": self.rounds,
            "processes": self.processes,
            "seconds": round(self.seconds),
            "runs_an_hour": round(3600 * self.runs / max(self.seconds, 1e-9)),
            "simulated_hours": round(self.simulated_seconds / 3600, 1),
            "slowest_recovery_seconds": round(self.slowest_recovery),
            "events": self.steps,
            "faults": dict(sorted(self.happened.items())),
            "failures": [
                {"seed": result.seed, "violation": result.violation} for result in self.failures
            ],
        }


def simulate(
    first_seed: int,
    runs: int,
    rounds: int,
    processes: int = 1,
    seconds: float = float("inf"),
    on_result: Callable[[Result], None] = lambda result: None,
) -> Campaign:
    """Run `runs` seeds from `first_seed` on, for `seconds` at the most (to the next ten)."""
    campaign, begin = Campaign(rounds, processes), time.perf_counter()
    for result in _results(first_seed, runs, rounds, processes, begin + seconds):
        campaign.add(result)
        on_result(result)
        campaign.seconds = time.perf_counter() - begin
    return campaign


def _results(first: int, runs: int, rounds: int, processes: int, until: float) -> Iterator[Result]:
    seeds = range(first, first + runs)
    if processes == 1:
        simulation = Simulation(rounds)
        for seed in seeds:
            if time.perf_counter() >= until:
                return
            yield simulation.run(simulation.scenario(seed))
        return
    shares = (seeds[at : at + SEEDS_PER_TASK] for at in count(0, SEEDS_PER_TASK))
    left = takewhile(len, shares)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        waiting = {pool.submit(_share, share, rounds) for share in islice(left, 2 * processes)}
        while waiting:
            done = next(as_completed(waiting))
            waiting.remove(done)
            yield from done.result()
            if time.perf_counter() < until and (share := next(left, None)) is not None:
                waiting.add(pool.submit(_share, share, rounds))


_simulations: dict[int, Simulation] = {}


def _share(seeds: range, rounds: int) -> list[Result]:
    simulation = _simulations.setdefault(rounds, Simulation(rounds))
    return [simulation.run(simulation.scenario(seed)) for seed in seeds]
