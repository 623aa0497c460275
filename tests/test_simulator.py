"""The simulator: it is deterministic, finds planted bugs, makes failures short; and some seeds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from featherfed.simulator.campaign import simulate
from featherfed.simulator.shrinker import fewest
from featherfed.simulator.simulation import Simulation

ROUNDS = 3


def trace_of(seed: int, hash_seed: str) -> str:
    code = (
        "from featherfed.simulator.simulation import Simulation\n"
        f"simulation = Simulation({ROUNDS})\n"
        f"print(simulation.run(simulation.scenario({seed})).trace)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    simulation = Simulation(ROUNDS)
    here = simulation.run(simulation.scenario(7)).trace
    assert simulation.run(simulation.scenario(7)).trace == here
    assert simulation.run(simulation.scenario(8)).trace != here
    assert trace_of(7, "1") == trace_of(7, "2") == here
