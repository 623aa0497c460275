"""The task of each client: train, wait, or fetch the final model."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.open_round import OpenRound
from featherfed.server.coordinator.presence import Presence
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.rounds.transitions import Heard, Phase


class Tasks:
    """Answers clients that ask for a task."""

    def __init__(
        self, run: LiveRun, members: Members, presence: Presence, open_round: OpenRound
    ) -> None:
        self._run = run
        self._members = members
        self._presence = presence
        self._open_round = open_round

    def next_task(self, client: str) -> pb.NextTaskReply:
        """Return what the client should do now."""
        run = self._run
        with run.lock:
            self._presence.hear(client)
            if client in run.state.lost or client in run.state.late:
                run.apply(Heard(run.clock(), client))
            state = run.state
            if state.phase is Phase.FINISHED:
                end = pb.Finished(version=state.round, digest=run.newest_digest)
                return pb.NextTaskReply(finished=end)
            waiting = client in state.reported or not run.in_cohort(client)
            if state.phase is not Phase.TRAINING or waiting:
                return pb.NextTaskReply(wait=pb.Wait())
            train = pb.Train(
                round=state.round,
                version=state.round - 1,
                codec=self._open_round.codec_for(self._members.record(client).stages),
                sparsity=self._open_round.sparsity,
                digest=run.newest_digest,
                slot=run.slot_of(client),
                slots=state.slots,
            )
            return pb.NextTaskReply(train=train)
