"""A simulated client process: the real session, transport and state, on a simulated disk."""

from __future__ import annotations

from collections.abc import Callable

from featherfed.compression.registry import STAGES
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.partial_download import FILE_NAME
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.edge_client.state_directory import lock_state
from featherfed.proto import federation_pb2 as pb
from featherfed.simulator.files import ClientDisk
from featherfed.simulator.scenario import Member
from featherfed.simulator.scheduler import Process, Scheduler
from featherfed.simulator.training import CLASSES, SHAPE, RandomWalk

GIVE_UP_AFTER = 300.0
"""Seconds of silence after which a client ends, to be started again."""
_NEW_STAGES = {"sketch", "eden", "range"}
_UNKNOWN_FIELD = bytes([0xFA, 0x07, 3]) + b"old"  # field 127, as another version may send


class _State(ClientState):
    """A client's state that tells which models it keeps."""

    on_held: Callable[[HeldModel], None]

    def save_held(self, held: HeldModel) -> None:
        super().save_held(held)
        self.on_held(held)


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
        self._member = member

    def start(
        self,
        on_held: Callable[[HeldModel], None],
        on_training: Callable[[pb.Train, bytes], None],
        on_end: Callable[[HeldModel | Exception], None],
    ) -> None:
        """Take part in the run; `on_end` gets the final model, or why the client gave up.

        `on_held` gets every model that is kept, `on_training` every task with the digest of the
        weights that training starts from.
        """

        def main() -> None:
            try:
                end: HeldModel | Exception = self._take_part(on_held, on_training)
            except Exception as error:
                end = error
            on_end(end)

        self.spawn(main)

    def _take_part(
        self,
        on_held: Callable[[HeldModel], None],
        on_training: Callable[[pb.Train, bytes], None],
    ) -> HeldModel:
        member, directory = self._member, self.disk.folder
        data = pb.DataSummary(
            num_examples=member.num_examples, example_shape=SHAPE, num_classes=len(CLASSES)
        )
        profile = Profile(member.name, data, "numpy", ("none",), "0")
        trainer = RandomWalk(member.name, member.seconds, self.scheduler.pause, on_training)

        def make_state(run: str) -> ClientState:
            state = _State(directory, run)
            state.on_held = on_held
            return state

        with lock_state(directory):
            transport = GrpcTransport(member.name, GIVE_UP_AFTER, None, directory / FILE_NAME)
            try:
                kind = _OldSession if member.old else Session
                return kind(profile, transport, lambda *_: trainer, make_state).run()
            finally:
                transport.close()
