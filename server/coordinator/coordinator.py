"""The run itself: what the rounds, the store, the codecs and the evaluator do on each call.

Knows neither gRPC nor TensorFlow nor the clock. Safe to call from several threads.
"""

from __future__ import annotations

import functools
import hashlib
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from featherfed.compression.arrays import Array
from featherfed.compression.context import Context
from featherfed.compression.errors import NonFiniteError, OutOfRangeError, WireError
from featherfed.compression.exchange.average import WeightedUpdate
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, weights_digest
from featherfed.compression.exchange.round import (
    FULL_RATE,
    RoundContext,
    RoundStart,
    round_key,
    start_round,
    statistics_of,
)
from featherfed.compression.exchange.update import apply_update, decode_update, max_payload
from featherfed.compression.registry import STAGES, parse_codec
from featherfed.proto import federation_pb2 as pb
from featherfed.server.access.names import check_name
from featherfed.server.aggregation.clipping import measure
from featherfed.server.aggregation.next_version import next_version
from featherfed.server.aggregation.strategy import Aggregator
from featherfed.server.coordinator.admission import (
    DataShape,
    check_capabilities,
    check_data,
    check_runtime,
)
from featherfed.server.coordinator.evaluation import Evaluator
from featherfed.server.coordinator.training_step import OfferedStep
from featherfed.server.errors import Refused, ServerError
from featherfed.server.observability import events
from featherfed.server.observability.status import describe
from featherfed.server.rounds import transitions as rounds
from featherfed.server.rounds.clock import resume
from featherfed.server.rounds.transitions import Phase
from featherfed.server.rounds.uplink import Uplink
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.failures import damaged
from featherfed.server.storage.records import Entry, Member, Piece, Update, Version
from featherfed.server.storage.refusals import STRANGER
from featherfed.server.storage.store import Store
from featherfed.server.transfers.routes import Route, Router

PRESENCE = 60.0
"""A client heard of within so many seconds is waiting for a task; its polls are shorter."""

LITERT = "litert"
"""The runtime of clients that train with an exported step instead of Keras."""

SILENT_BEATS = 2.9
"""Silent for so many heartbeats, a client is dead: with a turn of the loop, that is three."""

MAX_CLIENT_WEIGHT = 1e12
"""Far above any trained weight, and far enough below MAX_MAGNITUDE that no mean reaches that."""


@dataclass(frozen=True)
class Delivery:
    """What a client downloads, the round its bytes belong to, and whether it has had it before."""

    route: Route
    round: int
    again: bool


class Coordinator:
    """One run: join, next_task, fetch and submit for clients; tick and aggregate for the server."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        plan: pb.Plan,
        manifest: Manifest,
        data_shape: DataShape,
        evaluator: Evaluator,
        clock: Callable[[], float],
        first_weights: Sequence[Array] | None = None,
        secret: int | None = None,
        step: OfferedStep | None = None,
    ) -> None:
        """Begin the run that `settings` describe, or go on with the one in `store`.

        `first_weights`: version 0, if it is not what the plan's seed gives. `secret`: seed of
        cohorts and slots, below 2**63, random if it is not given. `step`: for clients that train
        with LiteRT. Raises ServerError if the store holds another run.
        """
        self.settings = settings
        self.manifest = manifest
        self.plan = plan
        self._step = step or OfferedStep()
        self.store = store
        self._data_shape = data_shape
        self._evaluator = evaluator
        self._clock = clock
        self._lock = threading.RLock()
        compression = settings.compression
        self._uplink = Uplink(compression.uplink, manifest, settings.rounds)
        self._fallback = parse_codec(compression.fallback)
        self._downlink = parse_codec(compression.downlink)
        self._aggregator = Aggregator(settings, manifest, store)
        self._start: tuple[int, RoundStart] | None = None
        self._begin(first_weights, secrets.randbits(63) if secret is None else secret)
        self._policy = replace(settings.policy, seed=store.secret())
        self._clients = store.clients()
        self._state = store.load_state()
        self._began = clock()
        self._places: tuple[tuple[str, ...], dict[str, int]] = (), {}
        if self._state.phase is Phase.GATHERING:  # after a restart, clients get their patience anew
            self._state = replace(self._state, since=self._began)
        if self._state.phase is Phase.TRAINING:
            left = {"limit": self._policy.deadline, "grace": self._policy.patience}
            self._state = replace(self._state, since=resume(self._state.since, self._began, **left))
        # After the last round, they get time to fetch the final model.
        seen = self._began if self._state.phase is Phase.FINISHED else -math.inf
        self._last_seen = dict.fromkeys(self._clients, seen)
        self._digest, self._allocation = store.newest().digest, store.newest().allocation
        self._sessions = {member.session: client for client, member in self._clients.items()}
        seed_digest = weights_digest(initial_weights(manifest, plan.seed))
        self._router = Router(store, manifest, seeded=seed_digest == store.version(0).digest)
        version = store.newest().version
        events.run_opened(plan.run, self._state, version, again=bool(self._clients or version))

    def _begin(self, first_weights: Sequence[Array] | None, secret: int) -> None:
        run = self.store.run()
        model = hashlib.sha256(self.plan.model_json.encode() + self.manifest.digest).hexdigest()
        fingerprint = f"{self.settings.fingerprint} {model}"
        if run and run[1] != fingerprint:
            raise ServerError(
                f"{self.settings.output} holds run {run[0]!r} with other settings; choose another "
                "output directory, restore the settings, or delete the directory to start anew"
            )
        if run:
            self.plan.run = run[0]
            self._check_model()
            self.store.save_plan(self.plan, seeded=first_weights is None)  # of an older version
            return
        self.plan.run = f"{self.settings.name}-{secrets.token_hex(4)}"
        weights = first_weights or initial_weights(self.manifest, self.plan.seed)
        version = Version(0, weights_digest(weights), "delta", "", 0.0, b"")
        now = self._clock()
        with self.store.transaction():
            state = rounds.RunState(since=now)
            self.store.create_run(self.plan.run, fingerprint, now, secret, state)
            self.store.add_version(version, weights, None)
            self.store.save_plan(self.plan, seeded=first_weights is None)

    def _check_model(self) -> None:
        weights, _ = self.store.model(self.manifest)
        newest = self.store.newest()
        if weights_digest(weights) != newest.digest:
            raise damaged(
                f"{self.settings.output}/run.db",
                f"the model is not version {newest.version} by its digest",
            )

    # ---- for clients ----

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Admit a client, or let a known one in again; raise Refused if it cannot take part."""
        with self._lock:
            check_name(request.client)
            self._check_room(request.client)
            check_data(request.data, self._data_shape)
            check_runtime(request.capabilities.runtime)
            # First, since its reason says more than that the client lacks a method.
            lite = request.capabilities.runtime == LITERT
            step = self._step.describe() if lite else None
            check_capabilities(request.capabilities, self._needed(request.capabilities))
            session = secrets.randbits(63)
            can = set(request.capabilities.stages)  # of which nothing unknown here is kept
            stages = _one_of_equals(frozenset(name for name in STAGES if name in can))
            member = Member(session, request.data.num_examples, stages)
            runtime = request.capabilities.runtime
            self.store.save_client(request.client, member, runtime, self._clock())
            again = request.client in self._clients
            if again:
                del self._sessions[self._clients[request.client].session]
            self._clients[request.client] = member
            self._last_seen.setdefault(request.client, -math.inf)
            self._sessions[session] = request.client
            events.client_joined(self.plan.run, request, again)
            return pb.JoinReply(session=session, plan=self.plan, step=step)

    def _check_room(self, client: str) -> None:
        most = self.settings.limits.clients
        if client not in self._clients and len(self._clients) >= most:
            raise Refused(
                pb.TOO_MANY_CLIENTS,
                f"the run has {most} clients, as many as it takes; join another run, or raise "
                "[limits] clients on the server",
            )

    def _needed(self, has: pb.Capabilities) -> set[str]:
        """Return the codec stages and the method that a client must be able to do.

        Broadcasts it cannot decode reach it as snapshots.
        """
        if self._uplink.stages <= set(has.stages):
            return {self.settings.optimization.method}
        return {*self._fallback.needs, self.settings.optimization.method}

    @property
    def training_step(self) -> bytes:
        """The exported training step, compressed, for a client that was told of it on joining."""
        return self._step.compressed

    def client_of(self, session: int) -> str:
        """Return the client whose session this is, and note that it was heard of.

        Never waits. Raises Refused if it must join (again).
        """
        try:
            client = self._sessions[session]
        except KeyError:
            raise Refused(pb.UNKNOWN_SESSION, "join first; after a restart, join again") from None
        self.hear(client)
        return client

    def hear(self, client: str) -> None:
        """Note that a client is alive, no device that only infers; never waits."""
        if client in self._clients:
            self._last_seen[client] = self._clock()

    def next_task(self, client: str) -> pb.NextTaskReply:
        """Return what the client should do now."""
        with self._lock:
            self.hear(client)
            if client in self._state.lost or client in self._state.late:
                self._move(rounds.Heard(self._clock(), client))
            state = self._state
            if state.phase is Phase.FINISHED:
                end = pb.Finished(version=state.round, digest=self._digest)
                return pb.NextTaskReply(finished=end)
            waiting = client in state.reported or client not in self._place
            if state.phase is not Phase.TRAINING or waiting:
                return pb.NextTaskReply(wait=pb.Wait())
            train = pb.Train(
                round=state.round,
                version=state.round - 1,
                codec=self._codec_of(client),
                sparsity=self.settings.sparsity.at(state.round),
                digest=self._digest,
                slot=self._slot_of(client),
                slots=state.slots,
            )
            return pb.NextTaskReply(train=train)

    @property
    def _place(self) -> dict[str, int]:
        """Each client's place in the round's cohort."""
        cohort = self._state.cohort
        if self._places[0] is not cohort:
            self._places = cohort, {client: at for at, client in enumerate(cohort)}
        return self._places[1]

    def _slot_of(self, client: str) -> int:
        return self._place[client] % self._state.slots

    def _codec_of(self, client: str) -> str:
        """Return the codec of a client's update in this round: the run's, or what it knows."""
        state = self._state
        sparsity = self.settings.sparsity.at(state.round)
        text = self._uplink.codec(state.slots, state.round, sparsity)
        if parse_codec(text).needs <= self._clients[client].stages:
            return text
        return str(self._fallback)

    def fetch(self, client: str, request: pb.FetchModelRequest) -> Delivery:
        """Return the smallest route to the newest version; raise Refused for any other version."""
        with self._lock:
            route = self._router.route(request, self._clients[client].stages)
            again = self.store.has_transfer(self.ledger_round, client)
            return Delivery(route, self.ledger_round, again)

    def max_update_bytes(self, client: str) -> int:
        """Return the most payload bytes an honest update of this client can have now."""
        with self._lock:
            if client not in self._place:
                return max_payload(self._fallback, self.manifest)
            return max_payload(parse_codec(self._codec_of(client)), self.manifest)

    def admit_upload(self, client: str, header: pb.UpdateHeader) -> pb.Outcome:
        """Judge an update by its header; return DUPLICATE if it is here, else OUTCOME_UNSPECIFIED.

        Raises Refused if it is not wanted, or does not go on where what is kept of it ends.
        """
        limit = self.max_update_bytes(client)
        with self._lock:
            self.hear(client)
            if self.store.has_update(header.round, client):
                return pb.DUPLICATE
            self._check_header(client, header)
            if header.size > limit:
                raise Refused(
                    pb.TOO_LARGE, f"{header.size} bytes; the round's codec needs {limit} at most"
                )
            if len(header.digest) not in (0, 8):
                raise Refused(pb.MALFORMED, f"a digest of {len(header.digest)} bytes, not of 8")
            if not header.offset:
                self.store.drop_pieces(client)
            elif header.offset != (kept := self._kept(client, header)):
                raise Refused(pb.BUSY, f"{kept} bytes are here, not {header.offset}; ask again")
            return pb.OUTCOME_UNSPECIFIED

    def _kept(self, client: str, header: pb.UpdateHeader) -> int:
        if not header.digest:
            return 0
        return self.store.kept_bytes(client, header.round, header.digest, header.size)[0]

    def upload_offset(self, client: str, header: pb.UpdateHeader) -> int:
        """Return how many bytes of an update need not be sent (again): all, if it is not wanted."""
        with self._lock:
            self.hear(client)
            try:
                if self.store.has_update(header.round, client):
                    return header.size
                self._check_header(client, header)
            except Refused:
                return header.size
            return self._kept(client, header)

    def keep_piece(
        self, client: str, header: pb.UpdateHeader, at: int, data: bytes, message_bytes: int
    ) -> None:
        """Count what came of an update as retry, and keep it; raise Refused if it is not wanted."""
        with self._lock:
            try:
                self._check_header(client, header)
            except Refused:
                self.count_retry(client, header, len(data), message_bytes)
                raise
            key = header.round, header.digest, header.size
            with self.store.transaction():
                self.count_retry(client, header, len(data), message_bytes)
                self.store.add_piece(Piece(client, at, *key, message_bytes, data))

    def count_retry(
        self, client: str, header: pb.UpdateHeader, size: int, message_bytes: int
    ) -> None:
        """Count what came of an update in vain, as far as is known now."""
        round_ = self.ledger_round_of(header)
        self.store.count(Entry(round_, client, "uplink", "retry", size, message_bytes))

    def submit(
        self, client: str, header: pb.UpdateHeader, payload: bytes, message_bytes: int
    ) -> pb.Outcome:
        """Check, journal and count an update; return ACCEPTED or DUPLICATE, or raise Refused.

        When it returns ACCEPTED, the update is on disk and will be counted exactly once.
        `message_bytes` are those of the messages that carried it, but for kept pieces.
        """
        with self._lock:
            if self.store.has_update(header.round, client):
                return self._duplicate(client, header.round)
            start, round_ = self._check_header(client, header), self._round()
            part = WeightedUpdate(
                self._slot_of(client), header.num_examples, self._codec_of(client), payload
            )
        try:
            update = decode_update(
                parse_codec(part.codec),
                self.manifest,
                payload,
                masks=start.masks,
                context=round_.update(part.slot),
            )
            weights = apply_update(self.manifest, start.weights, update, limit=MAX_CLIENT_WEIGHT)
        except NonFiniteError as error:
            raise Refused(pb.NON_FINITE, str(error)) from error
        except OutOfRangeError as error:
            raise Refused(pb.OUT_OF_RANGE, str(error)) from error
        except WireError as error:
            raise Refused(pb.MALFORMED, str(error)) from error
        norms = measure(parse_codec(part.codec), self.manifest, update, weights)
        row = Update(
            header.round,
            client,
            part.slot,
            part.codec,
            min(header.num_examples, self.settings.aggregation.max_examples or header.num_examples),
            payload,
            _finite(header.train_loss),
            _finite(header.train_accuracy),
        )
        with self._lock:
            if self.store.has_update(header.round, client):
                return self._duplicate(client, header.round)
            self._check_header(client, header)
            with self.store.transaction():
                self.store.add_update(row)
                self.store.add_norms(header.round, client, norms)
                self._count_update(client, header, len(payload), message_bytes)
                after = self._write(rounds.Reported(self._clock(), client))
            events.update_accepted(self.plan.run, row, message_bytes)
            self._adopt(after)
        return pb.ACCEPTED

    def _duplicate(self, client: str, round_: int) -> pb.Outcome:
        self.store.bump("duplicate_updates")
        events.update_again(self.plan.run, round_, client)
        return pb.DUPLICATE

    def _count_update(
        self, client: str, header: pb.UpdateHeader, size: int, message_bytes: int
    ) -> None:
        """Count an accepted update; its pieces were of use and are no retry any more."""
        kept, carried = self.store.kept_bytes(client, header.round, header.digest, header.size)
        self.store.drop_pieces(client)
        if kept:
            self.store.count(Entry(header.round, client, "uplink", "retry", -kept, -carried))
        self.store.count(
            Entry(header.round, client, "uplink", "transfer", size, message_bytes + carried)
        )

    def _check_header(self, client: str, header: pb.UpdateHeader) -> RoundStart:
        state = self._state
        if state.phase is not Phase.TRAINING or header.round != state.round:
            raise Refused(pb.LATE, f"round {header.round} is not open; keep the update for later")
        if client not in self._place:
            raise Refused(pb.NOT_SELECTED, f"not in the cohort of round {state.round}")
        if header.version != state.round - 1:
            raise Refused(
                pb.WRONG_VERSION,
                f"trained from version {header.version}; round {state.round} starts from "
                f"{state.round - 1}",
            )
        joined_with = self._clients[client].num_examples
        if not 1 <= header.num_examples <= joined_with:
            raise Refused(
                pb.BAD_EXAMPLE_COUNT,
                f"{header.num_examples} examples; must be 1 to {joined_with}, as told on joining",
            )
        return self._round_start()

    def _round_start(self) -> RoundStart:
        round_ = self._state.round
        if self._start is None or self._start[0] != round_:
            weights, _ = self.store.model(self.manifest)
            sparsity = self.settings.sparsity.at(round_)
            self._start = round_, start_round(self.manifest, weights, sparsity)
        return self._start[1]

    def _round(self) -> RoundContext:
        """Return what everybody in the round knows."""
        state = self._state
        sparsity = self.settings.sparsity.at(state.round)
        return RoundContext(
            round_key(self.plan.seed, state.round),
            state.slots,
            self._round_start().masks,
            self._allocation,
            self._uplink.server_rate(state.slots, state.round, sparsity),
            statistics_of(self.manifest, self._round_start().weights),
        )

    def record_refusal(self, client: str, refusal: Refused, round_: int | None = None) -> None:
        """Count a refusal in the given or the current round; what names nobody is a stranger's."""
        with self._lock:
            refusal.recorded = True
            reason = pb.Reason.Name(refusal.reason)
            round_ = min(self._state.round if round_ is None else round_, self._state.round)
            client = STRANGER if refusal.reason == pb.BAD_NAME or not client else client
            detail, now = refusal.detail, self._clock()
            first = self.store.add_refusal(round_, client, reason, detail, now)
        events.refused(self.plan.run, round_, client, refusal, first)

    @property
    def ledger_round(self) -> int:
        """The round that bytes sent now belong to; rounds + 1 is the final model's delivery."""
        return self._state.round + (self._state.phase is Phase.FINISHED)

    def ledger_round_of(self, header: pb.UpdateHeader) -> int:
        """The round that an update's bytes belong to, whatever its header says."""
        return min(header.round, self.ledger_round)

    # ---- for the server ----

    @property
    def phase(self) -> Phase:
        """Where the run is."""
        return self._state.phase

    def tick(self) -> rounds.RunState:
        """Let time pass: open or close rounds that are due. Return the state after it."""
        with self._lock:
            now = self._clock()
            present = self._fresh() - self._state.lost - self._state.late
            self._move(rounds.Tick(now, present, frozenset(self._clients), self._silent(now)))
            return self._state

    def _silent(self, now: float) -> frozenset[str]:
        """Return who cannot be training any more; without heartbeats only who is late can be."""
        state, beat = self._state, self.settings.clients.heartbeat
        limit = SILENT_BEATS * beat if beat else self._policy.deadline
        training = self._place.keys() - state.reported if beat else set[str]()
        began = max(self._began, state.since)
        return frozenset(
            client
            for client in training | state.late
            if now - max(began, self._last_seen[client]) > limit
        )

    def _fresh(self) -> frozenset[str]:
        now = self._clock()
        return frozenset(c for c, at in self._last_seen.items() if now - at <= PRESENCE)

    def _move(self, event: rounds.Event) -> None:
        if rounds.step(self._state, event, self._policy) == self._state:
            return
        with self.store.transaction():
            after = self._write(event)
        self._adopt(after)

    def _adopt(self, after: rounds.RunState) -> None:
        """Go on with a state that is on disk."""
        before, self._state = self._state, after
        events.moved(self.plan.run, before, after)

    def _write(self, event: rounds.Event) -> rounds.RunState:
        """Store what an event makes of the state; the caller adopts it once that is committed."""
        before = self._state
        after = rounds.step(before, event, self._policy)
        if after != before:
            if (before.phase, after.phase) == (Phase.GATHERING, Phase.TRAINING):
                self.store.open_round(after.round, after.since, sorted(after.cohort))
            if (before.phase, after.phase) == (Phase.TRAINING, Phase.AGGREGATING):
                self.store.close_round(after.round, after.since, sorted(after.cohort))
                self.store.drop_transfers()
            if replace(after, reported=before.reported) != before:  # the journal knows the rest
                self.store.save_state(after)
        return after

    def aggregate(self) -> None:
        """Fold the closed round's updates into the next version, judge it, and go on."""
        round_ = self._state.round
        start = self._round_start()
        shared = self._round()
        ruling = self._aggregator.rule(round_)
        rate = shared.server_rate % FULL_RATE  # 0, which costs nothing, is the whole mean
        forwards = self.settings.forwards
        bundle = pb.Bundle(slots=shared.slots, server_rate=rate) if forwards else None
        grades: list[tuple[str, float | None, str | None]] = []
        with self._aggregator.begin(round_, shared, ruling) as under_way:
            for update in self.store.updates(round_):
                part = ruling.part(update)
                if part is None:
                    grades.append((update.client, None, None))
                    continue
                decoded = under_way.add(part)
                bundle = self._bundle(bundle, part)
                grades.append((update.client, *self._grade(start, decoded)))
            mean = under_way.mean()
        _, residual = self.store.model(self.manifest)
        sparsity = self.settings.sparsity.at(round_)
        context = Context(round_key(self.plan.seed, round_).child("mean"))
        step = next_version(
            self._downlink, self.manifest, round_, start, mean, under_way.allocation(), bundle,
            context, residual, sparsity,
        )  # fmt: skip
        result = self._evaluator.evaluate(step.weights)
        version = replace(step.version, loss=result.loss, accuracy=result.accuracy)
        with self._lock:
            with self.store.transaction():
                self.store.add_version(version, step.weights, step.residual)
                for grade in grades:
                    self.store.grade_update(round_, *grade)
                self.store.add_facts(round_, ruling.facts)
                for client, detail in ruling.outliers:
                    self.store.add_outlier(round_, client, detail, self._clock())
                after = self._write(rounds.Aggregated(self._clock()))
            events.version_made(self.plan.run, version)
            for client, detail in ruling.outliers:
                events.refused(self.plan.run, round_, client, Refused(pb.OUTLIER, detail), True)
            self._adopt(after)
            self._digest, self._allocation = version.digest, version.allocation

    def _bundle(self, bundle: pb.Bundle | None, part: WeightedUpdate) -> pb.Bundle | None:
        """Return the bundle with one more part, or None once it is larger than the model."""
        if bundle is None or bundle.ByteSize() > 4 * self.manifest.num_values:
            return None
        bundle.codec = bundle.codec or part.codec
        codec = "" if part.codec == bundle.codec else part.codec
        bundle.parts.add(
            slot=part.slot, num_examples=part.num_examples, codec=codec, payload=part.payload,
            clip=part.clip,
        )  # fmt: skip
        return bundle

    def _grade(self, start: RoundStart, decoded: list[Array]) -> tuple[float | None, str | None]:
        if not self.settings.evaluation.every_client:
            return None, None
        weights = apply_update(self.manifest, start.weights, decoded)
        result = self._evaluator.evaluate(weights)
        return result.accuracy, result.prediction

    @property
    def newest_version(self) -> int:
        """The number of the newest version."""
        return self.store.newest().version

    def newest_weights(self) -> list[Array]:
        """Return the newest version's weights."""
        return self.store.model(self.manifest)[0]

    def newest_model(self) -> tuple[int, list[Array]]:
        """Return the newest version's number and its weights, which belong together."""
        with self._lock:
            return self.newest_version, self.newest_weights()

    def everyone_has_finished(self) -> bool:
        """Whether every client that is still heard of has fetched the final model."""
        with self._lock:
            done = self._state.phase is Phase.FINISHED
            return done and self._fresh() <= self.store.downloaded(self.ledger_round)

    def status(self) -> pb.StatusReply:
        """Return where the run is, for people and progress bars."""
        with self._lock:
            counts = {client: member.num_examples for client, member in self._clients.items()}
            return describe(self.plan.run, self._state, self._policy, self.store, counts)


@functools.lru_cache(64)
def _one_of_equals(stages: frozenset[str]) -> frozenset[str]:
    """Return the set that all clients share which can do the same."""
    return stages


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
