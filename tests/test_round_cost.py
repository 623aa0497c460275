"""The benchmark of a round's cost runs, and measures the systems that need nothing installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.scripts import load_script

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return load_script(BENCHMARKS / "rounds.py")


@pytest.mark.parametrize("system", ["floor", "balanced"])
def test_a_round_is_measured(benchmark: ModuleType, system: str) -> None:
    found = benchmark.measure(system, Path(sys.executable), rounds=2)
    assert 0 < found["seconds"] <= found["longest_seconds"]
    assert 0 < found["server_cpu_seconds"] < found["cpu_seconds"]
