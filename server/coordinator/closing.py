"""Closing a round: from its journaled updates to the next model version.

A model that is not finite, or whose scores on the server's data are not, is never adopted: its
round is discarded, and the next version is what the round started from. It gets a version of its
own all the same, so that rounds and versions stay in step for clients, journal and ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from featherfed.compression.arrays import Array
from featherfed.compression.codec import Codec
from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.noise import MeanNoise, weight_noise
from featherfed.compression.exchange.round import RoundContext, RoundStart
from featherfed.compression.exchange.update import apply_update
from featherfed.compression.registry import parse_codec
from featherfed.proto import federation_pb2 as pb
from featherfed.server.aggregation.bundle import BundleBuilder
from featherfed.server.aggregation.decoded_updates import DecodedUpdates
from featherfed.server.aggregation.next_version import (
    UNCHANGED,
    NextVersion,
    RoundAggregate,
    next_version,
    unchanged_version,
)
from featherfed.server.aggregation.strategy import AggregationStrategy
from featherfed.server.aggregation.weighting import Weighting
from featherfed.server.coordinator.evaluation import (
    Evaluation,
    Evaluator,
    drawn,
    finite,
)
from featherfed.server.coordinator.open_round import OpenRound
from featherfed.server.coordinator.standardization import Standardization
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.rounds.budget import SMALL_COHORT
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.rounds.transitions import Aggregated
from featherfed.server.storage.records import Scores
from featherfed.tasks.scaling import Scaling


class _ClientModel(NamedTuple):
    """How good one client's own model is; None if it was not evaluated."""

    client: str
    scores: Scores | None = None
    prediction: str | None = None


class _NotAdopted(Exception):
    """A round's model cannot become the next version; says why."""


class RoundClosing:
    """Turns a closed round into the next model version."""

    def __init__(
        self,
        run: LiveRun,
        open_round: OpenRound,
        codecs: UpdateCodecs,
        strategy: AggregationStrategy,
        evaluator: Evaluator | None,
        held_out: HeldOutScores,
        standardization: Standardization,
        decoded: DecodedUpdates,
    ) -> None:
        """`evaluator`: None if clients evaluate, or nobody does."""
        self._run = run
        self._open_round = open_round
        self._codecs = codecs
        self._strategy = strategy
        self._evaluator = evaluator
        self._held_out = held_out
        self._standardization = standardization
        self._scaling: Scaling | None = None
        """What the evaluator was told."""
        self._decoded = decoded
        self._downlink = parse_codec(run.settings.compression.downlink)

    def aggregate(self) -> None:
        """Aggregate the closed round's updates, evaluate the model, and store it as next version.

        If it cannot be adopted, the next version is what the round started from. Raises CannotStore
        if the disk takes nothing now: nothing has changed, call it again.
        """
        self._tell_scaling()
        with self._run.lock:
            round_ = self._run.state.round
            start, context = self._open_round.shared()
        weighting = self._strategy.weigh(round_, start)
        aggregate, models = self._fold(round_, start, context, weighting)
        discarded, noise = None, aggregate.noise
        try:
            made = self._adopt(round_, start, context, weighting, aggregate)
        except _NotAdopted as error:
            made, discarded, noise = self._keep(round_, start), str(error), None
        found = self._weight_noise(start, context, made, noise)
        self._commit(made, models, weighting, noise, found, discarded)
        self._decoded.forget()

    def _weight_noise(
        self, start: RoundStart, context: RoundContext, made: NextVersion, noise: MeanNoise | None
    ) -> float | None:
        """Return the round's noise relative to the weights; None if it is unknown, or no matter."""
        if noise is None or self._codecs.promise is None or context.slots <= SMALL_COHORT:
            return None
        weights = start.changed_of(made.weights)
        return weight_noise(start.manifest, weights, noise, context.server_rate)

    def _adopt(
        self,
        round_: int,
        start: RoundStart,
        context: RoundContext,
        weighting: Weighting,
        aggregate: RoundAggregate,
    ) -> NextVersion:
        """Return the version that the aggregate gives; raise _NotAdopted if it is unusable."""
        if not weighting.total:
            raise _NotAdopted("none of its updates counts")
        _, residual = self._run.store.versions.model(self._run.manifest)
        try:
            made = next_version(
                round_, start, self._open_round.sparsity, aggregate, self._downlink_of(round_),
                context, residual,
            )  # fmt: skip
        except (CodecError, WireError) as error:
            raise _NotAdopted(str(error)) from error
        if self._evaluator is None:
            return made
        result = self._evaluator.evaluate(made.weights)
        if not result.is_finite:
            odd = ", ".join(f"{name} is {value}" for name, value in result.scores.items())
            raise _NotAdopted(f"on the server's data, its {odd}")
        return _evaluated(made, result)

    def _downlink_of(self, round_: int) -> Codec:
        """Return the codec of a round's mean; measured averages must not be rounded."""
        calibrates = self._run.rounds.is_calibration(round_)
        return UNCHANGED if calibrates else self._downlink

    def _keep(self, round_: int, start: RoundStart) -> NextVersion:
        """Return the version of a discarded round: what the round started from."""
        run, sparsity = self._run, self._open_round.sparsity
        _, residual = run.store.versions.model(run.manifest)
        made = unchanged_version(round_, start, sparsity, run.newest_allocation, residual)
        if self._evaluator is None:
            return made
        return _evaluated(made, self._evaluator.evaluate(made.weights))

    def _tell_scaling(self) -> None:
        scaling = self._standardization.scaling
        if self._evaluator is not None and scaling is not None and scaling is not self._scaling:
            self._evaluator.set_scaling(scaling)
            self._scaling = scaling

    def _fold(
        self, round_: int, start: RoundStart, context: RoundContext, weighting: Weighting
    ) -> tuple[RoundAggregate, list[_ClientModel]]:
        """Decode and add the updates one at a time, in order of slots."""
        weights = self._strategy.forwarded_weights(round_, weighting)
        bundle = BundleBuilder(context, start.manifest, weights)
        evaluated = self._evaluated_clients(round_, weighting)
        models = []
        with self._strategy.begin(round_, context, weighting) as aggregate:
            for update in self._run.store.journal.updates(round_):
                sent = weighting.weighted(update)
                if sent is None:
                    models.append(_ClientModel(update.client))
                    continue
                decoded = aggregate.add(sent)
                bundle.add(update.client, sent)
                models.append(
                    self._evaluate(update.client, start, decoded)
                    if update.client in evaluated
                    else _ClientModel(update.client)
                )
            mean = aggregate.mean()
        result = RoundAggregate(mean, aggregate.allocation(), bundle.result(), aggregate.noise())
        return result, models

    def _evaluated_clients(self, round_: int, weighting: Weighting) -> frozenset[str]:
        """Return the clients, of those whose updates count, whose own models are evaluated."""
        if self._evaluator is None:
            return frozenset()
        run, left_out = self._run, frozenset(weighting.record.left_out)
        counted = weighting.weights.keys() - left_out
        return drawn(counted, run.settings.evaluation.clients, run.policy.seed, round_)

    def _evaluate(self, client: str, start: RoundStart, update: Sequence[Array]) -> _ClientModel:
        assert self._evaluator is not None, "else no client is drawn"
        weights = apply_update(start.manifest, start.weights, update)
        result = self._evaluator.evaluate(start.complete(weights))
        return _ClientModel(client, finite(result.scores) or None, result.prediction or None)

    def _commit(
        self,
        made: NextVersion,
        models: list[_ClientModel],
        weighting: Weighting,
        noise: MeanNoise | None,
        found: float | None,
        discarded: str | None,
    ) -> None:
        run, store, version = self._run, self._run.store, made.version
        round_ = version.version

        def log() -> None:
            if discarded is not None:
                events.round_discarded(run.plan.run, round_, discarded)
            events.version_made(run.plan.run, version, noise)
            for client, detail in weighting.outliers:
                events.refused(run.plan.run, round_, client, Refused(pb.OUTLIER, detail), True)

        with run.change():
            scores = self._score_before(round_) or version.scores or {}
            store.versions.add(version, made.weights, made.residual)
            for model in models:
                store.journal.finish_update(round_, *model)
            store.journal.add_aggregation(round_, weighting.record)
            if noise is not None:
                store.journal.add_noise(round_, noise)
            if found is not None:
                self._keep_promise(round_, found)
            if discarded is not None:
                store.journal.add_discarded(round_, discarded)
            for client, detail in weighting.outliers:
                reason = pb.Reason.Name(pb.OUTLIER)
                store.refusals.add_in_transaction(round_, client, reason, detail, run.clock())
            store.after_commit(log)
            enough = run.is_enough(round_, scores) or run.settings.is_reached(scores, round_)
            run.apply(Aggregated(run.clock(), enough), version)

    def _keep_promise(self, round_: int, found: float) -> None:
        """Store the round's noise relative to the weights, and what follows for later rounds."""
        run, codecs, promise = self._run, self._codecs, self._codecs.promise
        assert promise is not None, "else no noise is found"
        trained = run.rounds.trained(round_)
        factor = promise.next_factor(codecs.factor(round_), found, trained)
        run.store.journal.add_byte_factor(round_, found, factor)

        def take_effect() -> None:
            if factor > codecs.factor(round_):
                most = promise.limit(trained)
                events.bytes_raised(run.plan.run, round_, promise.preset, factor, found, most)
            codecs.later_factor = factor

        run.store.after_commit(take_effect)

    def _score_before(self, round_: int) -> Scores:
        """Store what the round's clients found of the version before; return it if they evaluate.

        The caller has a transaction.
        """
        run, store = self._run, self._run.store
        if self._evaluator is not None:
            return {}
        sums = store.journal.sums_before(round_)
        scores = self._held_out.scores(sums)
        if scores:
            store.versions.set_scores(round_ - 1, scores)
        if sums:
            store.after_commit(
                lambda: events.version_evaluated(run.plan.run, round_ - 1, scores, len(sums))
            )
        return scores


def _evaluated(made: NextVersion, result: Evaluation) -> NextVersion:
    """Return a version with its scores, without those of which any is not finite."""
    return made._replace(version=replace(made.version, scores=finite(result.scores) or None))
