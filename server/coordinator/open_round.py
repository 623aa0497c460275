"""What all clients of the current round share."""

from __future__ import annotations

from featherfed.compression.exchange.round import RoundContext, RoundStart, start_round
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.update_codecs import UpdateCodecs


class OpenRound:
    """Derives the current round's sparsity, start, context and codecs from the run's state."""

    def __init__(self, run: LiveRun, codecs: UpdateCodecs) -> None:
        self._run = run
        self._codecs = codecs
        self._start: tuple[int, RoundStart] | None = None

    @property
    def sparsity(self) -> float:
        """The share of prunable weights that the round's masks remove."""
        return self._run.settings.sparsity.at(self._run.state.round)

    def start(self) -> RoundStart:
        """Return the newest version's weights under the round's masks."""
        round_ = self._run.state.round
        if self._start is None or self._start[0] != round_:
            weights, _ = self._run.store.versions.model(self._run.manifest)
            self._start = round_, start_round(self._run.manifest, weights, self.sparsity)
        return self._start[1]

    def context(self) -> RoundContext:
        """Return what every encoder and decoder of the round's updates must know."""
        state = self._run.state
        return self.start().context(
            self._run.plan.seed,
            state.round,
            state.slots,
            self._run.newest_allocation,
            self._codecs.server_rate(state.round, state.slots),
        )

    def codec_for(self, stages: frozenset[str]) -> str:
        """Return the codec text for a client that knows these stages."""
        state = self._run.state
        return self._codecs.choose(state.round, state.slots, stages)
