"""The task of each client: train, wait, or fetch the final model."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.model_files import FinalModelFiles
from featherfed.server.coordinator.open_round import OpenRound
from featherfed.server.coordinator.presence import Presence
from featherfed.server.coordinator.standardization import Standardization
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.rounds.transitions import Heard, Phase


class Tasks:
    """Answers clients that ask for a task."""

    def __init__(
        self,
        run: LiveRun,
        members: Members,
        presence: Presence,
        open_round: OpenRound,
        standardization: Standardization,
        model_files: FinalModelFiles,
    ) -> None:
        self._run = run
        self._members = members
        self._presence = presence
        self._open_round = open_round
        self._standardization = standardization
        self._model_files = model_files

    def next_task(self, client: str, has_scaling: bool = False) -> pb.NextTaskReply:
        """Return what the client should do now; rounds wait for it again if it was away.

        `has_scaling`: as in NextTaskRequest.
        """
        if self.was_away(client):
            self.returned(client)
        return self.current(client, has_scaling)

    def current(self, client: str, has_scaling: bool = False) -> pb.NextTaskReply:
        """Return what a client that was not away should do now. Does not block."""
        run = self._run
        self._presence.hear(client)
        state, digest, _ = run.committed
        # In the first round always: a server put back to before it may have fixed another one.
        scaling = None if has_scaling and state.round > 1 else self._standardization.message
        if state.phase is Phase.FINISHED:
            end = pb.Finished(version=state.round, digest=digest, scaling=scaling)
            return pb.NextTaskReply(finished=self._model_files.announce(end))
        slot = run.slot_of(client, state)
        if state.phase is not Phase.TRAINING or slot is None or client in state.reported:
            return pb.NextTaskReply(wait=pb.Wait())
        train = pb.Train(
            round=state.round,
            version=state.round - 1,
            codec=self._open_round.codec_for(self._members.record(client).stages, state),
            sparsity=self._open_round.sparsity_of(state),
            digest=digest,
            slot=slot,
            slots=state.slots,
            scaling=scaling,
            calibrate=run.rounds.is_calibration(state.round),
        )
        return pb.NextTaskReply(train=train)

    def was_away(self, client: str) -> bool:
        """Whether no round waits for this client until it has `returned`. Does not block."""
        state = self._run.committed.state
        return client in state.lost or client in state.late

    def returned(self, client: str) -> None:
        """Let rounds wait again for a client that asks for a task."""
        with self._run.lock:
            self._presence.hear(client)
            if client in self._run.state.lost or client in self._run.state.late:
                self._run.apply(Heard(self._run.clock(), client))
