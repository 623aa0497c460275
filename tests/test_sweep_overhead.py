"""The benchmark of a sweep's cost runs, on a small data set."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from support.scripts import load_script

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "sweep_overhead.py"


@pytest.fixture
def benchmark() -> ModuleType:
    return load_script(SCRIPT)


@pytest.mark.parametrize("system", ["plain25", "balanced"])
def test_a_run_is_measured(benchmark: ModuleType, system: str) -> None:
    case = benchmark.cases("digits", rounds=1, epochs=1)[system]
    found = benchmark.measure(system, case)
    assert found["seconds"] > 0
    assert found["cpu_seconds"] > 0
    assert 0 <= found["accuracy"] <= 1
