"""How a round's updates become one: the clipped mean, a robust rule, or a private mean."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from featherfed.compression.exchange.average import Average
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import RoundContext
from featherfed.compression.key import Key
from featherfed.server.aggregation.aggregate import Mean
from featherfed.server.aggregation.clipping import Ruling, rule_on_norms
from featherfed.server.aggregation.privacy import Mechanism, PrivateMean
from featherfed.server.aggregation.robust import RobustMean
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.records import Facts
from featherfed.server.storage.store import Store


class Aggregator:
    """What `[aggregation]` and `[privacy]` of a run ask for."""

    def __init__(self, settings: Settings, manifest: Manifest, store: Store) -> None:
        """Raise ServerError if the run asks for privacy and nothing here can account for it."""
        self._settings = settings
        self._manifest = manifest
        self._store = store
        self._epsilon = _find_accountant() if settings.private else None

    def rule(self, round_: int) -> Ruling:
        """Return how much of each journaled update of a round counts."""
        weights = self._store.weights(round_)
        norms = self._store.norms(round_)
        asked = self._settings.aggregation
        if self._epsilon is not None:
            privacy = self._settings.privacy
            spent = self._epsilon(
                privacy.noise_multiplier, self._store.participation(round_), privacy.delta
            )
            return self._mechanism(round_, len(weights)).rule(norms, spent)
        if self._settings.rule.is_robust:
            return Ruling(dict.fromkeys(weights, 1), len(weights), Facts())
        return rule_on_norms(weights, norms, asked.clip, asked.quantile)

    @contextmanager
    def begin(self, round_: int, shared: RoundContext, ruling: Ruling) -> Iterator[Mean]:
        """Give the aggregate to which the parts that `ruling` makes are added."""
        rule = self._settings.rule
        if rule.is_robust:
            with tempfile.TemporaryFile(dir=self._store.folder) as scratch:
                yield RobustMean(rule, self._manifest, shared, scratch)
            return
        mean = Average(self._manifest, shared, ruling.total)
        if self._settings.private:
            yield PrivateMean(self._mechanism(round_, ruling.total), mean, shared.masks)
        else:
            yield mean

    def _mechanism(self, round_: int, n: int) -> Mechanism:
        privacy = self._settings.privacy
        before = self._store.facts(round_ - 1).next_clip
        return Mechanism(
            privacy.noise_multiplier,
            privacy.clip if before is None else before,
            n,
            privacy.quantile if privacy.adaptive else None,
            Key.root(self._store.secret()).child("privacy", round_),
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
