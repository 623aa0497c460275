"""docs/tasks.md: its run files are run files, and its tables are what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from featherfed.server.settings.settings import Settings
from featherfed.server.settings.task import (
    InputSettings,
    PartSettings,
    TargetSettings,
    WindowSettings,
)
from featherfed.tasks.metrics import _METRICS, DEFAULT_METRICS, metric
from featherfed.tasks.task import _LOSSES, TargetKind

PAGE = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text("utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
SHAPES = re.findall(r"# (.*) -> (.*)$", PAGE, re.MULTILINE)


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_run_file_can_be_served(number: int) -> None:
    task = Settings.model_validate(tomllib.loads(BLOCKS[number])).explicit_task
    assert task is not None
    inputs, output = SHAPES[number]
    said = re.findall(r"\[[\d, ]*\]", inputs)
    assert said == [str(list(given.shape)) for given in task.inputs]
    parts = output.split(" and ")
    assert len(parts) == len(task.parts)
    for part, text in zip(task.parts, parts, strict=True):
        shapes = {str(list(shape)) for shape in part.output_shapes()}
        said = text.replace(" probabilities", "")
        assert (said if said.startswith("[") else f"[{said}]") in shapes


def test_there_is_an_example_of_every_kind() -> None:
    tasks = [Settings.model_validate(tomllib.loads(block)).explicit_task for block in BLOCKS]
    assert len(tasks) == len(SHAPES) == 8
    assert {task.target.kind for task in tasks if task} == set(TargetKind)


def test_every_key_is_described() -> None:
    assert {row[0].strip("`") for row in rows("Inputs")} == set(InputSettings.model_fields)
    assert {row[0].strip("`") for row in rows("Windows")} == set(WindowSettings.model_fields)
    assert [row[0].strip("`") for row in rows("Target")] == [kind.value for kind in TargetKind]
    section = PAGE.split("\n## Target\n")[1].split("\n## ")[0]
    for key in TargetSettings.model_fields:
        assert f"`{key}" in section, key
    own = {row[0].strip("`") for row in rows("Several targets")}
    assert own == PartSettings.model_fields.keys() - TargetSettings.model_fields.keys()


def test_losses_are_those_that_fit() -> None:
    for kind, losses in rows("Loss"):
        assert re.findall(r"`(\w+)`", losses) == list(_LOSSES[TargetKind(kind.strip("`"))])


def test_metrics_are_those_that_there_are() -> None:
    said = {row[0].strip("`"): row[1:] for row in rows("Metrics")}
    top = said.pop("top1` to `top99")
    assert set(said) == set(_METRICS)
    for name, (better, kinds, definition, sums) in {**said, "top7": top}.items():
        item = metric(name)
        assert better == ("higher" if item.larger_is_better else "lower"), name
        assert set(kinds.split(", ")) == item.kinds, name
        assert definition
        assert [item.size(5), item.size(9)] == [eval(sums.replace("·C", "*" + n)) for n in "59"]
    section = PAGE.split("\n## Metrics\n")[1]
    for names in DEFAULT_METRICS.values():
        assert all(f"`{name}`" in section.split("\n\n")[0] for name in names)
