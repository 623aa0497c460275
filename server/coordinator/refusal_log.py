"""Counting and logging what is refused."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.storage.refusals import STRANGER


class RefusalLog:
    """Records every refusal under its round, client and reason."""

    def __init__(self, run: LiveRun, members: Members) -> None:
        self._run = run
        self._members = members

    def record(self, client: str, refusal: Refused, round_: int | None = None) -> None:
        """Count and log a refusal in round `round_`, by default the current one. Does not block.

        `client`: empty for a stranger.
        """
        run = self._run
        reason = pb.Reason.Name(refusal.reason)
        current = run.state.round
        round_ = current if round_ is None else min(round_, current)
        client = STRANGER if refusal.reason == pb.BAD_NAME or not client else client
        joined = client == STRANGER or client in self._members
        first = run.store.refusals.add(
            round_, client, reason, refusal.detail, run.clock(), joined=joined
        )
        events.refused(run.plan.run, round_, client, refusal, first)
