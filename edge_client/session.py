"""One client in one run: join, then answer tasks until the run is finished.

Knows neither gRPC nor TensorFlow: a Transport calls the server, a Trainer trains.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.errors import CodecError
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update, subtract
from featherfed.compression.registry import abilities, parse_codec
from featherfed.edge_client.errors import (
    UNKNOWN_HERE,
    ClientError,
    Rejected,
    SessionLost,
    StaleTask,
)
from featherfed.edge_client.evaluation import FinalReport, OwnEvaluation
from featherfed.edge_client.heartbeat import Heartbeat
from featherfed.edge_client.int8_helper import int8_helper
from featherfed.edge_client.model_sync import ModelSync
from featherfed.edge_client.plan import check_task, manifest_of, task_of
from featherfed.edge_client.scaling import OwnScaling
from featherfed.edge_client.state import ClientState, HeldModel, PendingUpdate
from featherfed.edge_client.trainer import CalibratingTrainer, MakeTrainer, Trainer
from featherfed.edge_client.training_step import load_training_step
from featherfed.edge_client.transport import Transport
from featherfed.edge_client.update_sender import UpdateSender
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.protocol import OLDEST, PROTOCOL

log = logging.getLogger(__name__)

EVICTED_WITHIN = 60.0
"""Seconds: a session that is lost twice within them was taken over by another client of the same
name; a restart of the server loses it once."""

_SHORT_POLL = 1.0  # seconds; after a shorter poll that brought no work the client pauses
ABSURD_WEIGHT = 1e4
"""Far above the weights of any model that training gives."""


@dataclass(frozen=True)
class Profile:
    """How a client describes itself when it joins: name, data and abilities."""

    name: str
    data: pb.DataSummary
    runtime: str
    methods: tuple[str, ...]
    version: str


class Session:
    """Takes part in a run from joining to its end, and joins again if the server loses it."""

    def __init__(
        self,
        profile: Profile,
        transport: Transport,
        make_trainer: MakeTrainer,
        make_state: Callable[[str], ClientState],
        renew: Callable[[Trainer], int] | None = None,
    ) -> None:
        """`renew`: gives a trainer the newest data before each round, and returns their number."""
        self._profile = profile
        self._transport = transport
        self._make_trainer = make_trainer
        self._make_state = make_state
        self._renew = renew
        self._waits = False
        """Whether it was said that the client waits, since its last round."""

    def run(self) -> HeldModel:
        """Take part until the run is finished; return the final model.

        Raises ClientError, Rejected or Unreachable; the state on disk stays usable.
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

    def _take_part(self) -> HeldModel:
        transport = self._transport
        reply = transport.join(self._join_request())
        plan, session = reply.plan, reply.session
        _check_protocol(reply.protocol)
        manifest, learned = manifest_of(plan), task_of(plan)
        state = self._make_state(f"{plan.run} {manifest.digest.hex()}")
        log.info("joined run %s as %s", plan.run, self._profile.name)
        step = None
        if reply.HasField("step"):
            step = load_training_step(reply.step, state, transport, session)
        model = ModelSync(transport, session, manifest, plan.seed, state)
        trainer = self._make_trainer(plan, manifest, step)
        scaling, evaluation = OwnScaling(learned, trainer), OwnEvaluation(trainer, plan.holdout)
        handler = TaskHandler(
            manifest,
            plan.seed,
            state,
            model,
            trainer,
            scaling,
            evaluation,
            UpdateSender(transport, session, state),
            self._num_examples(trainer),
        )
        beat = partial(transport.heartbeat, session)
        self._waits = False
        while True:
            began = time.monotonic()
            task = transport.next_task(session, scaling.is_known)
            try:
                if task.HasField("finished"):
                    held = model.catch_up(task.finished.version, task.finished.digest)
                    state.sync()
                    if plan.holdout and self._profile.data.num_held_out:
                        helper = int8_helper(transport, session, manifest, trainer)
                        report = FinalReport(
                            transport, session, evaluation, scaling, goes_on=helper is not None
                        )
                        with Heartbeat(beat, plan.heartbeat_seconds):
                            report.send(task.finished, held)
                            if helper is not None and task.finished.evaluate_int8:
                                helper.help(task.finished)
                    return held
                if task.HasField("train"):
                    check_task(task.train, plan)
                    with Heartbeat(beat, plan.heartbeat_seconds):
                        handler.handle(task.train)
                    self._waits = False
                    continue
                if not task.HasField("wait"):
                    raise ClientError(f"the server gives a kind of task that is {UNKNOWN_HERE}")
                self._tell_waiting()
            except StaleTask as error:
                log.warning("the task is out of date, asking for the next one: %s", error)
            if time.monotonic() - began < _SHORT_POLL:
                time.sleep(random.uniform(1, 2) * _SHORT_POLL)

    def _tell_waiting(self) -> None:
        if not self._waits:
            log.info("waiting until the server opens a round for this client")
        self._waits = True

    def _num_examples(self, trainer: Trainer) -> Callable[[], int]:
        """Return what gives the number of examples that the next round is trained on."""
        renew, number = self._renew, self._profile.data.num_examples
        return (lambda: number) if renew is None else partial(renew, trainer)

    def _join_request(self) -> pb.JoinRequest:
        profile = self._profile
        return pb.JoinRequest(
            client=profile.name,
            data=profile.data,
            capabilities=pb.Capabilities(
                stages=sorted(abilities()),
                methods=profile.methods,
                runtime=profile.runtime,
                featherfed=profile.version,
                protocol=PROTOCOL,
            ),
        )


def _check_protocol(number: int) -> None:
    if number < OLDEST:
        raise ClientError(
            f"the server speaks protocol {number}, this client {OLDEST} to {PROTOCOL}; update "
            "featherfed on the server"
        )


class TaskHandler:
    """Trains and sends one update for each training task, also across restarts."""

    def __init__(
        self,
        manifest: Manifest,
        seed: int,
        state: ClientState,
        model: ModelSync,
        trainer: Trainer,
        scaling: OwnScaling,
        evaluation: OwnEvaluation,
        sender: UpdateSender,
        num_examples: Callable[[], int],
    ) -> None:
        """`num_examples`: called before each round; how many it is trained on."""
        self._manifest = manifest
        self._seed = seed
        self._state = state
        self._model = model
        self._trainer = trainer
        self._scaling = scaling
        self._evaluation = evaluation
        self._sender = sender
        self._num_examples = num_examples

    def handle(self, task: pb.Train) -> None:
        """Train and send an update, or send the one that was made before a restart."""
        pending = self._state.pending()
        if pending is not None and self._is_outdated(pending, task):
            self._sender.keep_for_later(pending)
        elif pending is not None:  # of any round: only the server knows if it has it already
            self._sender.send(pending, again=True)
            if pending.round == task.round:
                return
        pending = self._make_update(task)
        self._state.save_pending(pending)
        self._sender.send(pending)

    def _is_outdated(self, pending: PendingUpdate, task: pb.Train) -> bool:
        """Whether an update of this round started from other weights than the round does now.

        A server that was put back to a backup may have made the version anew.
        """
        held = self._state.held()
        if held is None or (pending.round, pending.version) != (task.round, held.version):
            return False
        return held.digest != task.digest

    def _make_update(self, task: pb.Train) -> PendingUpdate:
        try:
            codec = parse_codec(task.codec)
        except CodecError as error:
            raise ClientError(
                f"the server wants a codec that is {UNKNOWN_HERE}: {error}"
            ) from error
        self._scaling.take(task)
        num_examples = self._num_examples()
        held = self._model.catch_up(task.version, task.digest)
        before = self._evaluation.of(held.weights)
        start = start_round(self._manifest, held.weights, task.sparsity)
        weights = start.complete(start.weights)
        if task.calibrate:
            log.info("round %d: calibrating the model's moving averages", task.round)
            trained = self._calibrating().calibrate(weights, task)
        else:
            log.info("round %d: training on %d examples", task.round, num_examples)
            trained = self._trainer.train(weights, task)
        update = subtract(start.changed_of(trained.weights), start.weights)
        round_ = start.context(self._seed, task.round, task.slots, held.allocation)
        residual = self._state.residual()
        try:
            encoded = encode_update(
                codec,
                start.manifest,
                update,
                masks=start.masks,
                residual=residual,
                context=round_.for_slot(task.slot),
            )
        except CodecError as error:
            raise ClientError(
                f"round {task.round}: training gave an update that cannot be sent ({error}); "
                f"{_advice(start.weights)}"
            ) from error
        return PendingUpdate(
            task.round,
            task.version,
            num_examples,
            trained.loss,
            encoded.payload,
            None if encoded.residual is None else encoded.target,
            encoded.residual,
            before,
            self._evaluation.of(trained.weights),
        )

    def _calibrating(self) -> CalibratingTrainer:
        if isinstance(self._trainer, CalibratingTrainer):
            return self._trainer
        raise ClientError(
            f"the server asks to measure the model's moving averages, and {type(self._trainer)} "
            "has no method calibrate (edge_client/trainer.py); give it one"
        )


def _advice(start: Sequence[Array]) -> str:
    """Return what to do about training from weights `start` that has diverged."""
    largest = max((float(np.abs(tensor).max(initial=0)) for tensor in start), default=0.0)
    if not largest <= ABSURD_WEIGHT:
        return (
            f"the global model that it started from has weights up to {largest:.3g}, which no "
            "training gives: not these data, but another client has spoilt it; tell whoever runs "
            "the server"
        )
    return "check the data, or ask for a lower learning rate"
