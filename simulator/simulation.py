"""Simulating seeds: each run compared with the same run undisturbed."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from featherfed.simulator.scenario import Scenario, draw_scenario
from featherfed.simulator.world import Result, World

_MEMORY = Path("/dev/shm")


class Simulation:
    """Runs scenarios; what they must come to is worked out once for each kind of run."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._wanted: dict[Scenario, list[bytes]] = {}

    def scenario(self, seed: int) -> Scenario:
        """Return the scenario of a seed."""
        return draw_scenario(seed, self._rounds)

    def prepare(self, scenario: Scenario) -> None:
        """Work out now what a scenario must come to."""
        if scenario.has_one_result:
            self._undisturbed(scenario)

    def run(self, scenario: Scenario, on_trace: Callable[[str], None] | None = None) -> Result:
        """Run a scenario, and compare it with the undisturbed run if it must have its result."""
        wanted = self._undisturbed(scenario) if scenario.has_one_result else None
        return _run(scenario, wanted, on_trace)

    def _undisturbed(self, scenario: Scenario) -> list[bytes]:
        quiet = scenario.undisturbed
        if quiet not in self._wanted:
            result = _run(quiet, None, None)
            if result.violation is not None:
                raise RuntimeError(f"without any fault: {result.violation}")
            self._wanted[quiet] = result.digests
        return self._wanted[quiet]


def with_faults(scenario: Scenario, numbers: list[int]) -> Scenario:
    """Return the scenario with some of its faults, by their numbers from 0."""
    return replace(scenario, faults=tuple(scenario.faults[number] for number in numbers))


def _run(
    scenario: Scenario, wanted: list[bytes] | None, on_trace: Callable[[str], None] | None
) -> Result:
    with _folder() as folder, _quiet():
        return World(scenario, folder, wanted, on_trace).run()


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder, in memory where there is one, that is removed afterwards."""
    where = _MEMORY if _MEMORY.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="featherfed-", dir=where)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the simulated processes log nothing: what they meet is wanted."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
