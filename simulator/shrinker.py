"""Makes a failing run short: the fewest faults, and the fewest rounds, that still fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from featherfed.simulator.scenario import Scenario
from featherfed.simulator.simulation import Simulation, with_faults
from featherfed.simulator.world import Result


def fewest(numbers: Sequence[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Return a smallest part of `numbers` that still fails: none can be left out alone.

    Leaves out halves, then quarters and so on (delta debugging, Zeller and Hildebrandt 2002).
    """
    left, parts = list(numbers), 2
    while left:
        size = max(1, len(left) // parts)
        starts = range(0, len(left), size)
        for start in starts:
            rest = left[:start] + left[start + size :]
            if fails(rest):
                left, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                return left
            parts *= 2
    return left


def shrink(
    simulation: Simulation, scenario: Scenario, on_try: Callable[[], None] = lambda: None
) -> tuple[list[int], Result]:
    """Return the numbers of the faults that a failing scenario needs, and what comes of them.

    A smaller set may fail otherwise than the whole did: what matters is that it fails.
    """
    last: dict[tuple[int, ...], Result] = {}

    def fails(numbers: list[int]) -> bool:
        on_try()
        result = simulation.run(with_faults(scenario, numbers))
        if result.violation is not None:
            last[tuple(numbers)] = result
        return result.violation is not None

    numbers = list(range(len(scenario.faults)))
    if not fails(numbers):
        raise ValueError(f"seed {scenario.seed} does not fail")
    found = fewest(numbers, fails)
    return found, last[tuple(found)]
