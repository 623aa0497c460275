"""The benchmark of a round's cost runs, and measures the systems that need nothing installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("rounds", BENCHMARKS / "rounds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("system", ["floor", "balanced"])
def test_a_round_is_measured(benchmark: ModuleType, system: str) -> None:
    found = benchmark.measure(system, Path(sys.executable), rounds=2)
    assert 0 < found["seconds"] <= found["longest_seconds"]
    assert 0 < found["server_cpu_seconds"] < found["cpu_seconds"]
