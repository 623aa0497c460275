"""One client in one run: join, then poll, fetch, train, send, until the run is finished.

Knows neither gRPC nor TensorFlow: a Transport talks and a Trainer trains.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from featherfed.compression.errors import CodecError, WireError
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update, subtract
from featherfed.compression.registry import STAGES, parse_codec
from featherfed.edge_client.errors import ClientError, Rejected, SessionLost, StaleTask
from featherfed.edge_client.heartbeat import Heart
from featherfed.edge_client.model import DigestMismatch, follow
from featherfed.edge_client.plan import manifest_of, unpack_step
from featherfed.edge_client.state import ClientState, Held, Pending
from featherfed.edge_client.trainer import MakeTrainer, Trainer
from featherfed.edge_client.transport import CHUNK_BYTES, Transport
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)

EVICTED_WITHIN = 60.0
"""A second loss of session within so many seconds is no restart of the server."""

_DIGEST_START = 8  # bytes that tell a version; what follows from it is checked in full
_COMES_BACK = {pb.LATE, pb.NOT_SELECTED, pb.WRONG_VERSION}
"""Refusals that say nothing against the update itself: it goes back into the residual whole."""


@dataclass(frozen=True)
class Profile:
    """What a client says of itself on joining."""

    name: str
    data: pb.DataSummary
    runtime: str
    methods: tuple[str, ...]
    version: str


class Session:
    """Runs a client to the end of its run; may be started again after any kind of death."""

    def __init__(
        self,
        profile: Profile,
        transport: Transport,
        make_trainer: MakeTrainer,
        make_state: Callable[[str], ClientState],
    ) -> None:
        self._profile = profile
        self._transport = transport
        self._make_trainer = make_trainer
        self._make_state = make_state

    def run(self) -> Held:
        """Take part until the run is finished; return the final model.

        Raises ClientError, Rejected or Unreachable, after which nothing is lost.
        """
        lost_at = float("-inf")
        while True:
            try:
                return self._take_part()
            except SessionLost as error:
                if time.monotonic() - lost_at < EVICTED_WITHIN:
                    raise Rejected(
                        f"session lost twice within {EVICTED_WITHIN:.0f} s: another client uses "
                        f"the name {self._profile.name!r}; choose one with --name"
                    ) from error
                lost_at = time.monotonic()
                log.warning("session lost, joining again: %s", error)

    def _take_part(self) -> Held:
        reply = self._transport.join(self._join_request())
        member = _Member(self._transport, reply, self._make_state)
        log.info("joined run %s as %s", reply.plan.run, self._profile.name)
        step = member.training_step(reply.step) if reply.HasField("step") else None
        trainer = self._make_trainer(reply.plan, member.manifest, step)
        while True:
            task = self._transport.next_task(reply.session)
            try:
                if task.HasField("finished"):
                    return member.catch_up(task.finished.version, task.finished.digest)
                if task.HasField("train"):
                    member.do_round(task.train, trainer, self._profile.data.num_examples)
            except StaleTask as error:
                log.warning("the run went on meanwhile: %s", error)

    def _join_request(self) -> pb.JoinRequest:
        profile = self._profile
        return pb.JoinRequest(
            client=profile.name,
            data=profile.data,
            capabilities=pb.Capabilities(
                stages=sorted(STAGES),
                methods=profile.methods,
                runtime=profile.runtime,
                featherfed=profile.version,
            ),
        )


class _Member:
    """A client that has joined: what it does in a round, and what it keeps."""

    def __init__(
        self,
        transport: Transport,
        reply: pb.JoinReply,
        make_state: Callable[[str], ClientState],
    ) -> None:
        self.manifest = manifest_of(reply.plan)
        self._transport = transport
        self._session = reply.session
        self._seed = reply.plan.seed
        self._beat_seconds = reply.plan.heartbeat_seconds
        self._state = make_state(f"{reply.plan.run} {self.manifest.digest.hex()}")

    def training_step(self, wanted: pb.Step) -> bytes:
        """Return the plan's training step, downloaded unless it is here from an earlier run."""
        content = self._state.training_step(wanted.digest)
        if content is None:
            content = unpack_step(wanted, self._transport.fetch_step(self._session, wanted))
            self._state.save_training_step(content)
        return content

    def catch_up(self, version: int, digest: bytes) -> Held:
        """Return the version of this digest, downloading only what is missing."""
        held = self._state.held()
        if held is None or (held.version, held.digest) != (version, digest):
            try:
                held = self._fetch(version, held)
            except (DigestMismatch, WireError) as error:
                log.warning("%s; fetching the whole model", error)
                held = self._fetch_whole(version)
            if (held.version, held.digest) != (version, digest):
                raise ClientError(f"the server sent another model than version {version}")
            self._state.save_held(held)
        return held

    def _fetch_whole(self, version: int) -> Held:
        try:
            return self._fetch(version, None)
        except (DigestMismatch, WireError) as error:
            raise ClientError(f"the server's model cannot be used: {error}") from error

    def _fetch(self, version: int, held: Held | None) -> Held:
        request = pb.FetchModelRequest(session=self._session, version=version)
        if held is not None:
            request.have_version = held.version
            request.have_digest = held.digest[:_DIGEST_START]
        links, data = self._transport.fetch_model(request)
        return follow(self.manifest, self._seed, held, links, data)

    def do_round(self, task: pb.Train, trainer: Trainer, num_examples: int) -> None:
        """Train and send an update, or send the one that was made before a restart."""
        beat = partial(self._transport.heartbeat, self._session)
        with Heart(beat, self._beat_seconds):
            self._do_round(task, trainer, num_examples)

    def _do_round(self, task: pb.Train, trainer: Trainer, num_examples: int) -> None:
        pending = self._state.pending()
        if pending is not None and pending.round != task.round:
            self._send(pending, again=True)  # only the server knows whether it got it before
            pending = None
        if pending is not None:
            self._send(pending, again=True)
        else:
            pending = self._make_update(task, trainer, num_examples)
            self._state.save_pending(pending)
            self._send(pending)

    def _make_update(self, task: pb.Train, trainer: Trainer, num_examples: int) -> Pending:
        held = self.catch_up(task.version, task.digest)
        if not 0 <= task.sparsity < 1 or not task.slots:
            raise ClientError(
                f"the server asks for a sparsity of {task.sparsity} in one of {task.slots} slots; "
                "refused"
            )
        start = start_round(self.manifest, held.weights, task.sparsity)
        log.info("round %d: training on %d examples", task.round, num_examples)
        trained = trainer.train(start.weights, task)
        update = subtract(trained.weights, start.weights)
        round_ = start.context(self._seed, task.round, task.slots, held.allocation)
        residual = self._state.residual()
        try:
            codec = parse_codec(task.codec)
            encoded = encode_update(
                codec,
                self.manifest,
                update,
                masks=start.masks,
                residual=residual,
                context=round_.update(task.slot),
            )
        except CodecError as error:
            raise ClientError(
                f"round {task.round}: training gave an update that cannot be sent ({error}); "
                "check the data, or ask for a lower learning rate"
            ) from error
        return Pending(
            task.round,
            task.version,
            num_examples,
            trained.loss,
            trained.accuracy,
            encoded.payload,
            encoded.target,
            encoded.residual,
        )

    def _send(self, pending: Pending, again: bool = False) -> None:
        header = pb.UpdateHeader(
            session=self._session,
            round=pending.round,
            version=pending.version,
            num_examples=pending.num_examples,
            size=len(pending.payload),
            train_loss=pending.loss,
            train_accuracy=pending.accuracy,
        )
        if len(pending.payload) > CHUNK_BYTES:
            header.digest = hashlib.sha256(pending.payload).digest()[:_DIGEST_START]
            if again:
                header.offset = self._transport.resume_update(header)
        reply = self._transport.submit_update(header, pending.payload)
        if reply.outcome in (pb.ACCEPTED, pb.DUPLICATE):
            log.info("round %d: sent %d bytes", pending.round, len(pending.payload))
            self._state.settle(pending.residual)
        elif reply.reason in _COMES_BACK:
            log.warning("round %d: not counted: %s", pending.round, reply.detail)
            self._state.settle(None if pending.residual is None else pending.target)
        else:
            self._state.settle(self._state.residual())
            raise Rejected(f"round {pending.round}: update refused: {reply.detail}")
