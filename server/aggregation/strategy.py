"""How a round's updates are aggregated: by a clipped mean, a robust rule or a private mean."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from featherfed.compression.exchange.average import Average
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import RoundContext, RoundStart
from featherfed.compression.key import Key
from featherfed.server.aggregation.aggregate import Aggregate
from featherfed.server.aggregation.clipping import clip_to_quantile, norms_of_start
from featherfed.server.aggregation.coarse_weights import coarse_weights
from featherfed.server.aggregation.decoded_updates import DecodedUpdates
from featherfed.server.aggregation.privacy import Mechanism, PrivateMean
from featherfed.server.aggregation.robust import RobustMean
from featherfed.server.aggregation.weighting import Weighting
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import AggregationRecord
from featherfed.server.storage.store import Store


class AggregationStrategy:
    """Applies the run file's sections `[aggregation]` and `[privacy]`."""

    def __init__(
        self, settings: Settings, manifest: Manifest, store: Store, decoded: DecodedUpdates
    ) -> None:
        """Raise ServerError if the run is private and no accountant is installed."""
        self._settings = settings
        self._manifest = manifest
        self._store = store
        self._decoded = decoded
        self._epsilon = _find_accountant() if settings.private else None

    def weigh(self, round_: int, start: RoundStart) -> Weighting:
        """Return how much each journaled update of a round counts."""
        journal, settings = self._store.journal, self._settings
        weights, norms = journal.example_counts(round_), journal.norms(round_)
        if self._epsilon is not None:
            spent = self._epsilon(
                settings.privacy.noise_multiplier,
                journal.most_rounds(round_) + self._store.publications.repeated,
                settings.privacy.delta,
            )
            return self._mechanism(round_, len(weights)).weigh(norms, spent)
        if settings.rule.is_robust:
            return Weighting(dict.fromkeys(weights, 1), len(weights), AggregationRecord())
        aggregation = settings.aggregation
        before = norms_of_start(self._manifest, start.weights)
        return clip_to_quantile(weights, norms, aggregation.clip, aggregation.quantile, before)

    def forwarded_weights(self, round_: int, weighting: Weighting) -> dict[str, int] | None:
        """Return what each update weighs if the round is forwarded, None if it must not be."""
        if not self._settings.forwards:
            return None
        left_out = weighting.record.left_out
        counted = {c: weight for c, weight in weighting.weights.items() if c not in left_out}
        secret = Key.root(self._store.runs.secret()).child("weights")
        return coarse_weights(counted, secret, round_)

    @contextmanager
    def begin(
        self, round_: int, context: RoundContext, weighting: Weighting
    ) -> Iterator[Aggregate]:
        """Yield an empty aggregate for the round's weighted updates."""
        rule = self._settings.rule
        if rule.is_robust:
            with tempfile.TemporaryFile(dir=self._store.folder) as scratch:
                yield RobustMean(rule, self._manifest, context, scratch)
            return
        if self._settings.private:
            mechanism = self._mechanism(round_, weighting.total)
            yield PrivateMean(mechanism, self._manifest, context)
        else:
            receive = partial(self._decoded.receive, context)
            yield Average(self._manifest, context, weighting.total, receive)

    def _mechanism(self, round_: int, n: int) -> Mechanism:
        privacy = self._settings.privacy
        adapted = self._store.journal.aggregation(round_ - 1).next_clip
        return Mechanism(
            privacy.noise_multiplier,
            privacy.clip if adapted is None else adapted,
            n,
            privacy.quantile if privacy.adaptive else None,
        )


def _find_accountant() -> Callable[[float, int, float], float]:
    try:
        from featherfed.server.aggregation.accountant import epsilon
    except ModuleNotFoundError as error:
        raise ServerError(
            f"privacy.noise_multiplier needs the accountant, but {error.name} is missing: "
            "pip install 'featherfed[privacy]'"
        ) from error
    return epsilon
