"""Accepting the updates of the open round."""

from __future__ import annotations

import math
from typing import NamedTuple

from featherfed.compression.errors import NonFiniteError, OutOfRangeError, WireError
from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.exchange.round import RoundContext, RoundStart
from featherfed.compression.exchange.update import changed_weights, max_payload
from featherfed.compression.registry import parse_codec
from featherfed.proto import federation_pb2 as pb
from featherfed.server.aggregation.clipping import update_norms
from featherfed.server.aggregation.decoded_updates import DecodedUpdates
from featherfed.server.coordinator.data_check import MAX_EXAMPLES, most_held_out
from featherfed.server.coordinator.evaluation import read_sums
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.open_round import OpenRound
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.rounds.transitions import Phase, Reported, RunState
from featherfed.server.storage.records import JournaledUpdate, LedgerEntry, UpdateNorms
from featherfed.server.storage.runs import DUPLICATE_UPDATES

MAX_CLIENT_WEIGHT = 1e12
"""Far above any trained weight, and far enough below MAX_MAGNITUDE that no mean reaches that."""


class DecodedUpdate(NamedTuple):
    """An update that gives usable weights."""

    update: JournaledUpdate
    norms: UpdateNorms


class Updates:
    """Accepts each update of the open round exactly once."""

    def __init__(
        self,
        run: LiveRun,
        members: Members,
        open_round: OpenRound,
        codecs: UpdateCodecs,
        held_out: HeldOutScores,
        decoded: DecodedUpdates,
    ) -> None:
        self._run = run
        self._members = members
        self._open_round = open_round
        self._codecs = codecs
        self._held_out = held_out
        self._decoded = decoded
        self._most: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        """From the opening of a client's last round to its update; none before a restart."""

    def max_bytes(self, client: str, state: RunState) -> int:
        """Return the most payload bytes of an honest update of this client in the round of `state`.

        Does not block.
        """
        text = self._codecs.fallback()
        if self._run.slot_of(client, state) is not None:
            text = self._open_round.codec_for(self._members.record(client).stages, state)
        if text not in self._most:
            self._most[text] = max_payload(parse_codec(text), self._run.manifest.sent)
        return self._most[text]

    def expects(self, client: str, header: pb.UpdateHeader, state: RunState) -> bool:
        """Whether the round of `state` still waits for this update of this client.

        Does not block; where it does not wait, `has` and `check` say why.
        """
        try:
            self._check(client, header, state)
        except Refused:
            return False
        return client not in state.reported

    def check(self, client: str, header: pb.UpdateHeader) -> None:
        """Raise Refused unless the open round expects this update of this client."""
        self._check(client, header, self._run.state)

    def _check(self, client: str, header: pb.UpdateHeader, state: RunState) -> None:
        if state.phase is not Phase.TRAINING or header.round != state.round:
            raise Refused(pb.LATE, f"round {header.round} is not open; keep the update for later")
        if self._run.slot_of(client, state) is None:
            raise Refused(pb.NOT_SELECTED, f"not in the cohort of round {state.round}")
        if header.version != state.round - 1:
            raise Refused(
                pb.WRONG_VERSION,
                f"trained from version {header.version}; round {state.round} starts from "
                f"{state.round - 1}",
            )
        # Data may have grown since the client joined.
        if not 1 <= header.num_examples <= MAX_EXAMPLES:
            raise Refused(
                pb.BAD_EXAMPLE_COUNT,
                f"{header.num_examples} examples; must be 1 to {MAX_EXAMPLES}",
            )

    def submit(
        self, client: str, header: pb.UpdateHeader, payload: bytes, message_bytes: int
    ) -> pb.Outcome:
        """Decode and accept a whole update; return what `accept` returns."""
        decoded = self.decode(client, header, payload)
        return self.accept(client, header, decoded, message_bytes)

    def decode(self, client: str, header: pb.UpdateHeader, payload: bytes) -> DecodedUpdate | None:
        """Return what to journal of an update, None if it was accepted before.

        Raises Refused if it is not expected now, or gives no usable weights.
        """
        run = self._run
        state = run.committed.state
        shared = self._open_round.shared_in(state.round)
        if shared is None or not self.expects(client, header, state):
            with run.lock:
                if self.has(client, header.round):
                    return None
                self.check(client, header)
                state, shared = run.state, self._open_round.shared()
        codec = self._open_round.codec_for(self._members.record(client).stages, state)
        slot = run.slot_of(client, state)
        assert slot is not None, "checked above"
        before, after = self._sums(client, header)
        sent = WeightedUpdate(slot, header.num_examples, codec, payload)
        norms = self._norms(sent, *shared)  # outside the lock: it takes long
        update = JournaledUpdate(
            header.round,
            client,
            slot,
            codec,
            min(header.num_examples, run.settings.aggregation.max_examples or header.num_examples),
            payload,
            _finite(header.train_loss),
            before=before,
            after=after,
        )
        return DecodedUpdate(update, norms)

    def _sums(self, client: str, header: pb.UpdateHeader) -> tuple[bytes, bytes]:
        """Return a client's evaluations of the round's version and of its own model.

        Empty where the run asks for none. Raises Refused for what no examples give.
        """
        if not self._run.plan.holdout:
            return b"", b""
        most = most_held_out(self._members.record(client))
        before, after = header.before, header.after
        held_out = self._held_out
        return read_sums(held_out, before, most), read_sums(held_out, after, most)

    def _norms(self, sent: WeightedUpdate, start: RoundStart, context: RoundContext) -> UpdateNorms:
        """Return the norms of a decoded update; raise Refused if it gives no usable weights."""
        try:
            update = self._decoded.receive(context, sent).tensors
            weights = changed_weights(start, update, limit=MAX_CLIENT_WEIGHT)
        except NonFiniteError as error:
            raise Refused(pb.NON_FINITE, str(error)) from error
        except OutOfRangeError as error:
            raise Refused(pb.OUT_OF_RANGE, str(error)) from error
        except WireError as error:
            raise Refused(pb.MALFORMED, str(error)) from error
        return update_norms(parse_codec(sent.codec), start.manifest, update, weights)

    def accept(
        self,
        client: str,
        header: pb.UpdateHeader,
        decoded: DecodedUpdate | None,
        message_bytes: int,
    ) -> pb.Outcome:
        """Accept what `decode` returned; return ACCEPTED or DUPLICATE, or raise Refused.

        ACCEPTED means that it counts exactly once, from the commit on. `message_bytes`: wire bytes
        of this call; bytes of stored chunks are added from the transfers.
        """
        run, store = self._run, self._run.store
        with run.change():
            if decoded is None or self.has(client, header.round):
                store.runs.increment(DUPLICATE_UPDATES)
                events.update_duplicate(run.plan.run, header.round, client)
                return pb.DUPLICATE
            self._members.check_included(client)
            self.check(client, header)
            update = decoded.update
            store.journal.add_update(update, decoded.norms)
            store.journal.add_arrival(header.round, client, run.clock())
            self._count(client, header, len(update.payload or b""), message_bytes)
            now = run.clock()
            seconds = now - run.state.since

            def accepted() -> None:
                self.seconds[client] = seconds
                events.update_accepted(run.plan.run, update, message_bytes)

            store.after_commit(accepted)
            run.apply(Reported(now, client))
        return pb.ACCEPTED

    def has(self, client: str, round_: int) -> bool:
        """Whether the client's update of a round was accepted; the caller holds the run's lock."""
        state = self._run.state
        if round_ == state.round:
            return client in state.reported
        return self._run.store.journal.has_update(round_, client)

    def _count(self, client: str, header: pb.UpdateHeader, size: int, message_bytes: int) -> None:
        """Count an accepted update; its stored chunks were counted as retry and now are not."""
        store = self._run.store
        stored = store.transfers.received(client, header.round, header.digest, header.size)
        store.transfers.drop_upload(client)
        if stored.payload:
            store.ledger.count(
                LedgerEntry(
                    header.round, client, "uplink", "retry", -stored.payload, -stored.message
                )
            )
        total = message_bytes + stored.message
        store.ledger.count(LedgerEntry(header.round, client, "uplink", "transfer", size, total))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
