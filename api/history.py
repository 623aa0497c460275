"""How a simulated run went: scores and bytes of each round, and the model that it ended with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from featherfed.api import plots
from featherfed.api.data import Data, as_dataset
from featherfed.api.extras import explained
from featherfed.api.plots import PlotKind
from featherfed.compression.arrays import Array
from featherfed.compression.files import write_whole
from featherfed.models.optimized import FederatedModel
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Score = float | None
"""None while it is unknown."""


@dataclass(frozen=True)
class Round:
    """One round: how good its version is, and what it cost.

    `train_loss`: mean over the clients, weighted by examples, None if they tell none. Bytes are of
    all clients together, with everything that is sent around the payload. `digest`: SHA-256 of the
    version's weights, in hexadecimal.
    """

    number: int
    scores: dict[str, Score]
    train_loss: Score
    uplink_bytes: int
    downlink_bytes: int
    clients: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Round:
        """Return a round's entry in metrics.json (docs/metrics.md) as a round."""
        clients = entry["clients"]
        told = [c for c in clients if c["train_loss"] is not None]
        count = sum(c["num_examples"] for c in told)
        loss = sum(c["train_loss"] * c["num_examples"] for c in told)
        return cls(
            entry["round"],
            entry["scores"],
            loss / count if count else None,
            sum(_bytes(c["uplink"]) for c in clients),
            sum(_bytes(c["downlink"]) for c in clients),
            tuple(c["client"] for c in clients),
            entry["digest"],
        )


class History:
    """How a run went, round by round, and its final model.

    `rounds` has an entry for each round that was held. `metrics` is all that is known, as in
    metrics.json of a served run (docs/metrics.md). `weights`: the final model's tensors, float32.
    """

    def __init__(
        self,
        metrics: dict[str, Any],
        model: FederatedModel,
        weights: Sequence[Array],
        scaling: Scaling | None,
    ) -> None:
        self.metrics = metrics
        self.rounds = tuple(Round.of(entry) for entry in metrics["rounds"])
        self.weights = list(weights)
        self._model = model
        self._scaling = scaling or Scaling.none(model.task)

    @property
    def task(self) -> Task:
        """What was learned."""
        return self._model.task

    @property
    def scaling(self) -> Scaling:
        """How the clients' data were standardised."""
        return self._scaling

    @property
    def scores(self) -> dict[str, list[Score]]:
        """Loss and metrics by name, a value for each round, as in the history of Keras' fit."""
        names = ("loss", *self.task.metrics)
        return {name: [round_.scores[name] for round_ in self.rounds] for name in names}

    @property
    def final(self) -> dict[str, Score]:
        """Loss and metrics of the final model by name."""
        return dict(self.metrics["final"]["scores"])

    @property
    def digest(self) -> str:
        """SHA-256 of the final weights, in hexadecimal; equal runs have equal digests."""
        return str(self.metrics["final"]["digest"])

    @property
    def bytes(self) -> dict[str, int]:
        """All that was sent, uplink and downlink, with the final model's delivery."""
        totals = self.metrics["final"]["totals"]
        return {side: _bytes(totals[side]) for side in ("uplink", "downlink")}

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended before its last round, by a callback or a target."""
        return bool(len(self.rounds) < self.metrics["settings"]["rounds"])

    def model(self) -> Any:
        """Return a new tf_keras model with the final weights; it is the caller's own."""
        self._model.set_weights(self.weights)
        return self._model.plain()

    def predict(self, inputs: Data) -> npt.NDArray[Any]:
        """Return the final model's answers, float32 [N, ...], to inputs as the clients have them.

        Those to several targets are an array of records: `answers["pulse"]` are those to `pulse`.
        Values are in the targets' own units, also where they were standardised.
        """
        # A list is of several inputs; the two of a tuple would be inputs and targets.
        data = as_dataset((inputs, None) if isinstance(inputs, list) else inputs, "inputs")
        prepared = self._scaling.prepare(data.fit_inputs(self.task))
        self._model.set_weights(self.weights)
        return self._scaling.restore(self._model.predict(prepared))

    def save(self, path: str | Path) -> None:
        """Write `metrics` as JSON, whole or not at all."""
        write_whole(Path(path), json.dumps(self.metrics, indent=1))

    def to_pandas(self) -> DataFrame:
        """Return a table with a row for each round: scores, training loss and bytes.

        Needs pandas: pip install 'featherfed[pandas]'.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise explained(error, "to_pandas") from error
        rows = [
            {
                **round_.scores,
                "train_loss": round_.train_loss,
                "uplink_bytes": round_.uplink_bytes,
                "downlink_bytes": round_.downlink_bytes,
                "clients": len(round_.clients),
            }
            for round_ in self.rounds
        ]
        index = pandas.Index([round_.number for round_ in self.rounds], name="round")
        return pandas.DataFrame(rows, index=index)

    def plot(
        self, kind: PlotKind | None = None, data: Data | None = None, *, target: str | None = None
    ) -> Figure:
        """Return a figure of the run, or of how the final model answers to data.

        Needs matplotlib: pip install 'featherfed[report]'. A notebook shows the figure; elsewhere
        it has `savefig`.

        Args:
            kind: Of the run, without data: "curves" (leading metric and bytes over the rounds) or
                "clients" (how the clients' scores and losses are distributed in each round). Of
                answers to data: "confusion" or "calibration" for classes and labels, "residuals"
                for values, "errors" where the input itself is the target. None: the curves, or
                with data all that fit the task.
            data: Inputs and targets as the clients have them, (x, y) or a `Dataset`.
            target: The name of one of several targets; None: all that the plot fits.

        Raises PlotError, a ValueError, for what does not fit the task, with what does; and
        DatasetError for data that do not.
        """
        chosen = plots.check_kind(kind, data is not None)
        if target is not None and data is None:
            raise plots.PlotError("a target is of answers to data; give data=, or no target")
        if data is None and chosen == "clients":
            return plots.draw(plots.client_panels(self.metrics["rounds"], self.task.leading))
        if data is None:
            sent = {
                side: [getattr(round_, f"{side}_bytes") for round_ in self.rounds]
                for side in ("uplink", "downlink")
            }
            return plots.curves(self.task.leading, self.scores[self.task.leading], sent)
        fitted = as_dataset(data, "data").fit(self.task)
        answers = plots.answers_to(self.task, fitted, self.predict(fitted), self._scaling)
        return plots.draw(plots.answer_panels(chosen, answers, target))

    def __repr__(self) -> str:
        name, final = self.task.leading, self.final[self.task.leading]
        score = "unknown" if final is None else f"{final:.4f}"
        sent = self.bytes
        return (
            f"<History: {len(self.rounds)} rounds, {name} {score}, {sent['uplink']:,} bytes up, "
            f"{sent['downlink']:,} down>"
        )


def _bytes(side: dict[str, int]) -> int:
    return side["message_bytes"] + side["control_bytes"] + side["retry_bytes"]
