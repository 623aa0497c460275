"""Closing a round: from its journaled updates to the next model version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.round import RoundContext, RoundStart
from featherfed.compression.exchange.update import apply_update
from featherfed.compression.registry import parse_codec
from featherfed.proto import federation_pb2 as pb
from featherfed.server.aggregation.bundle import BundleBuilder
from featherfed.server.aggregation.next_version import NextVersion, RoundAggregate, next_version
from featherfed.server.aggregation.strategy import AggregationStrategy
from featherfed.server.aggregation.weighting import Weighting
from featherfed.server.coordinator.evaluation import Evaluator
from featherfed.server.coordinator.open_round import OpenRound
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.rounds.transitions import Aggregated


class _ClientModel(NamedTuple):
    """How good one client's own model is; None if it was not evaluated."""

    client: str
    accuracy: float | None = None
    prediction: str | None = None


class RoundClosing:
    """Turns a closed round into the next model version."""

    def __init__(
        self,
        run: LiveRun,
        open_round: OpenRound,
        strategy: AggregationStrategy,
        evaluator: Evaluator,
    ) -> None:
        self._run = run
        self._open_round = open_round
        self._strategy = strategy
        self._evaluator = evaluator
        self._downlink = parse_codec(run.settings.compression.downlink)

    def aggregate(self) -> None:
        """Aggregate the closed round's updates, evaluate the model, and store it as next version.

        Raises CannotStore if the disk takes nothing now: nothing has changed, call it again.
        """
        round_ = self._run.state.round
        start, context = self._open_round.start(), self._open_round.context()
        weighting = self._strategy.weigh(round_)
        aggregate, models = self._fold(round_, start, context, weighting)
        _, residual = self._run.store.versions.model(self._run.manifest)
        made = next_version(
            round_, start, self._open_round.sparsity, aggregate, self._downlink, context, residual
        )  # fmt: skip
        result = self._evaluator.evaluate(made.weights)
        version = replace(made.version, loss=result.loss, accuracy=result.accuracy)
        self._commit(made._replace(version=version), models, weighting)

    def _fold(
        self, round_: int, start: RoundStart, context: RoundContext, weighting: Weighting
    ) -> tuple[RoundAggregate, list[_ClientModel]]:
        """Decode and add the updates one at a time, in order of slots."""
        weights = self._strategy.forwarded_weights(round_, weighting)
        bundle = BundleBuilder(context, self._run.manifest, weights)
        models = []
        with self._strategy.begin(round_, context, weighting) as aggregate:
            for update in self._run.store.journal.updates(round_):
                sent = weighting.weighted(update)
                if sent is None:
                    models.append(_ClientModel(update.client))
                    continue
                decoded = aggregate.add(sent)
                bundle.add(update.client, sent)
                models.append(self._evaluate(update.client, start, decoded))
            mean = aggregate.mean()
        return RoundAggregate(mean, aggregate.allocation(), bundle.result()), models

    def _evaluate(self, client: str, start: RoundStart, update: Sequence[Array]) -> _ClientModel:
        if not self._run.settings.evaluation.every_client:
            return _ClientModel(client)
        weights = apply_update(self._run.manifest, start.weights, update)
        result = self._evaluator.evaluate(weights)
        return _ClientModel(client, result.accuracy, result.prediction)

    def _commit(self, made: NextVersion, models: list[_ClientModel], weighting: Weighting) -> None:
        run, store, version = self._run, self._run.store, made.version
        round_ = version.version
        with run.lock:
            with store.transaction():
                store.versions.add(version, made.weights, made.residual)
                for model in models:
                    store.journal.finish_update(round_, *model)
                store.journal.add_aggregation(round_, weighting.record)
                for client, detail in weighting.outliers:
                    reason = pb.Reason.Name(pb.OUTLIER)
                    store.refusals.add_in_transaction(round_, client, reason, detail, run.clock())
                after = run.write(Aggregated(run.clock()))
            events.version_made(run.plan.run, version)
            for client, detail in weighting.outliers:
                events.refused(run.plan.run, round_, client, Refused(pb.OUTLIER, detail), True)
            run.adopt(after, version)
