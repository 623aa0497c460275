"""A sweep file (TOML): the grid of runs to make, as frozen, validated settings."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from featherfed.proto.plan_terms import Optimizer
from featherfed.server.rounds.uplink import PRESETS, check_uplink, is_codec
from featherfed.server.settings.section import Section
from featherfed.server.settings.settings import (
    BatchSize,
    Epochs,
    LearningRate,
    Settings,
    read_toml,
)
from featherfed.sweep.waiting import check_waits_for_all

_AXES = ("dataset", "model", "partition", "clients", "runtime")
TRAINING_AXES = ("learning_rate", "batch_size", "epochs", "optimizer")
"""The axes that are settings of `[training]`."""
Value = TypeVar("Value")
Axis = Annotated[tuple[Value, ...], Field(min_length=1)]


class CodecChoice(Section):
    """One value of the codec axis: settings of `[compression]`, as in a run file, with a label."""

    label: str
    compression: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            text = check_uplink(value)
            both_ways = {"downlink": text} if is_codec(text) else {}
            return {"label": text, "compression": {"uplink": text, **both_ways}}
        if isinstance(value, dict) and "label" in value and "compression" not in value:
            rest = {key: item for key, item in value.items() if key != "label"}
            return {"label": value["label"], "compression": rest}
        return value


class Grid(Section):
    """The axes of the grid: every combination of their values is run."""

    codec: Axis[CodecChoice]
    """Presets, budgets, codec text (for both directions), or tables with a label."""
    dataset: Axis[str] = ("digits",)
    model: Axis[str] = ("cnn",)
    partition: Axis[str] = ("iid",)
    clients: Axis[Annotated[int, Field(ge=1)]] = (5,)
    seed: Axis[Annotated[int, Field(ge=0)]] = (0,)
    runtime: Axis[Literal["keras", "litert"]] = ("keras",)
    """What clients train with; "litert" is added to the label of its runs."""
    learning_rate: Axis[LearningRate] | None = None
    """This and the axes below are settings of `[run.training]`; None: what stands there."""
    batch_size: Axis[BatchSize] | None = None
    epochs: Axis[Epochs] | None = None
    optimizer: Axis[Optimizer] | None = None

    @field_validator("codec")
    @classmethod
    def _labels_differ(cls, choices: tuple[CodecChoice, ...]) -> tuple[CodecChoice, ...]:
        labels = [choice.label for choice in choices]
        if len(set(labels)) < len(labels):
            raise ValueError("two codecs have the same label; give one a label of its own")
        return choices

    @field_validator(*TRAINING_AXES)
    @classmethod
    def _values_differ(cls, values: tuple[Value, ...] | None) -> tuple[Value, ...] | None:
        # The same run twice would count as two seeds.
        twice = [value for value in values or () if values is not None and values.count(value) > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands there twice; leave one out")
        return values

    @property
    def training(self) -> dict[str, tuple[Any, ...]]:
        """The values of each training axis that the grid has."""
        axes = {name: getattr(self, name) for name in TRAINING_AXES}
        return {name: values for name, values in axes.items() if values is not None}


@dataclass(frozen=True)
class Case:
    """One run of a sweep."""

    label: str
    dataset: str
    model: str
    partition: str
    clients: int
    seed: int
    settings: Settings
    runtime: str = "keras"
    varied: tuple[str, ...] = ()
    """The training axes that have several values in the grid."""

    @property
    def title(self) -> str:
        """What the run is called while the sweep goes on: its name, and how it trains."""
        training = self.settings.training
        words = [f"{axis.replace('_', ' ')} {getattr(training, axis)}" for axis in self.varied]
        return ", ".join([self.name, *words])

    @property
    def name(self) -> str:
        """A file name that people can read and no other case shares."""
        # How it trains is in the digest alone, so an axis more leaves finished runs their names.
        words = [self.dataset, self.model, self.partition, f"{self.clients}clients", self.label]
        text = "-".join([re.sub(r"[^a-z0-9.]+", "-", w.lower()).strip("-.") for w in words])
        return f"{text[:100]}-seed{self.seed}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """SHA-256 of all that the result depends on, the meaning of a preset included."""
        preset = PRESETS.get(self.settings.compression.uplink)
        text = f"{self.label}/{self.partition}/{self.clients}/{self.settings.fingerprint}/{preset}"
        return hashlib.sha256(text.encode()).hexdigest()


class Sweep(Section):
    """A whole sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "sweep"
    output: str = "runs/sweep"
    baseline: str = "float32"
    """The label whose final scores the others are compared with, seed by seed."""
    target_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Leading metric for "bytes to target", shares such as accuracy from 0 to 1. By default a
    little worse than the baseline's mean: one point of a share, one percent of other metrics."""
    memory_mb: Annotated[int, Field(ge=1)] = 2048
    """Memory that a run may need, its workers included; a Ray cluster starts no more runs on a node
    than fit."""
    run_workers: Annotated[int, Field(ge=1)] = 1
    """Processes in which the clients of a run train side by side; 1: one client after another."""
    grid: Grid
    run: dict[str, Any] = Field(default_factory=dict)
    """Settings of all runs, as in a run file."""

    @model_validator(mode="after")
    def _every_case_is_valid(self) -> Sweep:
        clash = {"seed", "model", "clients", "name", "output", "compression"} & set(self.run)
        if clash:
            raise ValueError(f"[run] sets {', '.join(sorted(clash))}, which the grid decides")
        training = self.run.get("training")
        twice = self.grid.training.keys() & set(training if isinstance(training, dict) else ())
        if twice:
            raise ValueError(
                f"[run.training] and [grid] both set {', '.join(sorted(twice))}; drop one of them"
            )
        for case in self.cases():
            if self.run_workers > 1:
                check_waits_for_all(case.settings, case.clients)
        return self

    def cases(self) -> Iterator[Case]:
        """Yield every run of the grid; seeds vary slowest, so that early results span codecs."""
        g = self.grid
        varied = tuple(name for name, values in g.training.items() if len(values) > 1)
        for seed, *place in itertools.product(g.seed, *(getattr(g, axis) for axis in _AXES)):
            dataset, model, partition, clients, runtime = place
            for values in itertools.product(*g.training.values()):
                training = dict(zip(g.training, values, strict=True))
                for choice in g.codec:
                    # Keras runs keep the names that they had before there was another runtime.
                    label = choice.label if runtime == "keras" else f"{choice.label} ({runtime})"
                    settings = self._settings(
                        label, choice, dataset, model, partition, clients, seed, training
                    )
                    yield Case(
                        label, dataset, model, partition, clients, seed, settings, runtime, varied
                    )

    def _settings(
        self,
        label: str,
        choice: CodecChoice,
        dataset: str,
        model: str,
        partition: str,
        clients: int,
        seed: int,
        training: dict[str, Any],
    ) -> Settings:
        shared = self.run.get("training", {})
        evaluation = {"clients": 0, **self.run.get("evaluation", {}), "dataset": dataset}
        return Settings.model_validate({
            **self.run,
            "name": self.name,
            "seed": seed,
            "model": {"name": model},
            # What is no table is left for the settings to refuse.
            "training": {**shared, **training} if isinstance(shared, dict) else shared,
            "compression": choice.compression,
            "clients": {"minimum": clients, "quorum": 1.0},
            "evaluation": evaluation,
            "notes": {"clients": clients, "partition": partition, "codec": label},
        })  # fmt: skip


def load_sweep(path: Path) -> Sweep:
    """Return the sweep in a file; raise ServerError that names each wrong key."""
    return read_toml(path, Sweep, "sweep file")
