"""A simulated client process: the real session, transport and state, on a simulated disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.compression.registry import STAGES
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.partial_download import FILE_NAME
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState, HeldModel, PendingUpdate
from featherfed.edge_client.state_directory import lock_state
from featherfed.proto import federation_pb2 as pb
from featherfed.simulator.files import ClientDisk
from featherfed.simulator.scenario import Member
from featherfed.simulator.scheduler import Process, Scheduler
from featherfed.simulator.training import HELD_OUT, TASK, RandomWalk

GIVE_UP_AFTER = 300.0
"""Seconds of silence after which a client ends, to be started again."""
_NEW_STAGES = {"sketch", "eden", "range"}
_UNKNOWN_FIELD = bytes([0xFA, 0x07, 3]) + b"old"  # field 127, as another version may send


class Witness(Protocol):
    """Is told what a client does."""

    def holds(self, client: str, held: HeldModel) -> None:
        """A client keeps a model version."""

    def trains(self, client: str, task: pb.Train, digest: bytes) -> None:
        """A client begins a task, from weights of this digest."""

    def sends(self, client: str, round_: int, residual: bytes | None) -> None:
        """A client has made an update, with the residual of this digest in it."""


class WatchedState(ClientState):
    """A client's state that tells what is kept in it."""

    def __init__(self, directory: Path, run: str, client: str, witness: Witness) -> None:
        """Tell `witness` what `client` keeps."""
        super().__init__(directory, run)
        self._client = client
        self._witness = witness
        self._residual: bytes | None = None

    def save_held(self, held: HeldModel) -> None:
        """Replace the held model version, and tell it."""
        super().save_held(held)
        self._witness.holds(self._client, held)

    def residual(self) -> list[Array] | None:
        """Return the residual, and remember its digest for the update that it goes into."""
        residual = super().residual()
        self._residual = None if residual is None else weights_digest(residual)
        return residual

    def save_pending(self, pending: PendingUpdate) -> None:
        """Tell which residual is in an update, and save the update."""
        is_sent = pending.residual is not None  # a codec that keeps no residual adds none
        self._witness.sends(self._client, pending.round, self._residual if is_sent else None)
        super().save_pending(pending)


class _OldSession(Session):
    """A client of a version that knew fewer stages, sent no runtime, and an unknown field."""

    def _join_request(self) -> pb.JoinRequest:
        request = super()._join_request()
        has = request.capabilities
        has.ClearField("runtime")
        del has.stages[:]
        has.stages.extend(sorted(set(STAGES) - _NEW_STAGES))
        return pb.JoinRequest.FromString(request.SerializeToString() + _UNKNOWN_FIELD)


class ClientProcess(Process):
    """One life of a client, from its start to its end or death."""

    def __init__(self, scheduler: Scheduler, member: Member, disk: ClientDisk) -> None:
        super().__init__(scheduler, member.name)
        self.disk = disk
        self.ended = False
        """Whether it has ended by itself."""
        self._member = member

    def start(self, witness: Witness, on_end: Callable[[HeldModel | Exception], None]) -> None:
        """Take part in the run; `on_end` gets the final model, or why the client gave up."""

        def main() -> None:
            try:
                end: HeldModel | Exception = self._take_part(witness)
            except Exception as error:
                end = error
            self.ended = True
            on_end(end)

        self.spawn(main)

    def _take_part(self, witness: Witness) -> HeldModel:
        member, directory = self._member, self.disk.folder
        (image,), classes = TASK.inputs, TASK.target
        data = pb.DataSummary(
            num_examples=member.num_examples,
            num_held_out=HELD_OUT,
            inputs=[pb.TensorSummary(dtype=image.dtype, shape=image.shape)],
            target=pb.TensorSummary(dtype=classes.dtype),
            num_classes=len(classes.class_names),
        )
        profile = Profile(member.name, data, "numpy", ("none", "prune"), "0")
        trainer = RandomWalk(
            member.name, member.seconds, self.scheduler.pause, partial(witness.trains, member.name)
        )

        def make_state(run: str) -> ClientState:
            return WatchedState(directory, run, member.name, witness)

        with lock_state(directory):
            transport = GrpcTransport(member.name, GIVE_UP_AFTER, None, directory / FILE_NAME)
            try:
                kind = _OldSession if member.old else Session
                return kind(profile, transport, lambda *_: trainer, make_state).run()
            finally:
                transport.close()
