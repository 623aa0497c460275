"""What all clients of the current round share."""

from __future__ import annotations

import itertools

from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.round import RoundContext, RoundStart, start_round
from featherfed.compression.exchange.update import decode_update
from featherfed.compression.registry import parse_codec
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import ServerError
from featherfed.server.rounds.transitions import Phase, RunState


class OpenRound:
    """Derives the current round's sparsity, start, context and codecs from the run's state."""

    def __init__(self, run: LiveRun, codecs: UpdateCodecs) -> None:
        self._run = run
        self._codecs = codecs
        self._start: tuple[int, RoundStart] | None = None
        self._made: tuple[int, tuple[RoundStart, RoundContext]] | None = None

    @property
    def sparsity(self) -> float:
        """The share of prunable weights that the round's masks remove."""
        return self.sparsity_of(self._run.state)

    def sparsity_of(self, state: RunState) -> float:
        """Return the sparsity of the round of `state`."""
        return self._run.settings.sparsity.at(state.round)

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

    def shared(self) -> tuple[RoundStart, RoundContext]:
        """Return start and context of the round, made once for all its updates.

        The caller holds the run's lock, and the round is open, or closed and not yet aggregated.
        """
        round_ = self._run.state.round
        if self._made is None or self._made[0] != round_:
            self._made = round_, (self.start(), self.context())
        return self._made[1]

    def shared_in(self, round_: int) -> tuple[RoundStart, RoundContext] | None:
        """Return what `shared` made in a round, None if it was not asked then. Does not block."""
        made = self._made
        return made[1] if made is not None and made[0] == round_ else None

    def codec_for(self, stages: frozenset[str], state: RunState) -> str:
        """Return the codec text of the round of `state` for a client that knows these stages."""
        return self._codecs.choose(state.round, state.slots, stages)

    def check_journal(self) -> None:
        """Raise ServerError if the round's first stored update does not decode.

        No row is damaged, so another version of featherfed wrote it.
        """
        state = self._run.state
        if state.phase not in (Phase.TRAINING, Phase.AGGREGATING):
            return
        for update in itertools.islice(self._run.store.journal.updates(state.round), 1):
            start, context = self.start(), self.context().for_slot(update.slot)
            try:
                codec, payload = parse_codec(update.codec), update.payload or b""
                decode_update(codec, start.manifest, payload, masks=start.masks, context=context)
            except (CodecError, WireError) as error:
                raise ServerError(
                    f"{self._run.store.place}: the update of {update.client} in round "
                    f"{state.round} was written by another version of featherfed and does not "
                    f"decode here ({error}); finish the run with that version, or "
                    f"{self._run.store.elsewhere}"
                ) from error
