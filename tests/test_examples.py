"""Every example of examples/ trains on a few of its data, and its notebook runs from top to end."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow_model_optimization")

import featherfed
from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.sources import load_train_test

ROOT = Path(__file__).parent.parent
FEW = 48


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def run(module: str, prefix: str = "", task: str = "TASK") -> featherfed.History:
    """Train an example for a round on few data of two clients; skip it where they are missing."""
    example = importlib.import_module(f"examples.{module}.example")
    build = getattr(example, f"build_{prefix.rstrip('_')}" if prefix else "build")
    try:
        clients = getattr(example, f"{prefix}clients")()
        x, y = getattr(example, f"{prefix}test")()
    except (SystemExit, DatasetError) as error:
        pytest.skip(str(error))
    few = {name: few_of(*data) for name, data in list(clients.items())[:2]}
    return featherfed.simulate(
        build(),
        getattr(example, task),
        clients=few,
        test=few_of(x, y),
        **{**example.TRAINING, "rounds": 1, "epochs": 1},
    )


def few_of(x: Any, y: Any) -> Dataset:
    return Dataset((x[:FEW],), None if y is None else y[:FEW])


@pytest.mark.parametrize("module", ["watch", "gait", "forecast", "anomaly", "text"])
def test_it_trains(module: str) -> None:
    history = run(module)
    assert all(math.isfinite(score or 0) for score in history.final.values())
    assert history.bytes["uplink"] > 0


@pytest.mark.parametrize(("prefix", "task"), [("diabetes_", "DIABETES"), ("cancer_", "CANCER")])
def test_tables(prefix: str, task: str) -> None:
    assert len(run("tables", prefix, task).rounds) == 1


@pytest.mark.slow  # trains the backbone that it starts from
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3's own
def test_transfer_sends_the_head_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history = run("transfer")
    assert history.metrics["float32_bytes"] == 4 * 2565
    assert history.metrics["num_parameters"] > 180_000


def test_every_example_has_its_page() -> None:
    listed = (ROOT / "examples" / "README.md").read_text("utf-8")
    for path in sorted((ROOT / "examples").glob("*/example.py")):
        name = path.parent.name
        assert f"({name}/README.md)" in listed
        page = (path.parent / "README.md").read_text("utf-8")
        assert f"python -m examples.{name}.example" in page


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a running event loop, as in Jupyter."""
    try:
        load_train_test("fashion-mnist")
    except DatasetError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("FEATHERFED_EXAMPLES", "64")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((ROOT / "examples/fashion/fashion.ipynb").read_text("utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    names: dict[str, Any] = {}

    async def execute() -> None:
        for cell in cells:
            exec(cell, names)

    asyncio.run(execute())
    assert len(names["history"].rounds) == 2
    import matplotlib.pyplot as plt

    assert len(plt.get_fignums()) == 5
    plt.close("all")
