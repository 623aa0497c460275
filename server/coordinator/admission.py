"""Who may join a run: checks that raise Refused with a reason that a person can act on."""

from __future__ import annotations

import functools
import secrets

from featherfed.compression.registry import abilities
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.protocol import OLDEST, PROTOCOL
from featherfed.server.access.names import check_name, is_plain
from featherfed.server.coordinator.data_check import check_data
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.presence import Presence
from featherfed.server.coordinator.standardization import Standardization
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.storage.records import ClientRecord
from featherfed.tasks.task import Task

LITERT = "litert"
"""The runtime of clients that train with an exported training step instead of Keras."""


class Admission:
    """Admits clients that fit the run, and gives them sessions."""

    def __init__(
        self,
        run: LiveRun,
        members: Members,
        presence: Presence,
        codecs: UpdateCodecs,
        task: Task,
        standardization: Standardization,
        step: ExportedStep,
    ) -> None:
        self._run = run
        self._members = members
        self._presence = presence
        self._codecs = codecs
        self._task = task
        self._standardization = standardization
        self._step = step

    def task(self) -> pb.GetTaskReply:
        """Return what the run learns, for a client to load its data by. Does not block."""
        plan = self._run.plan
        return pb.GetTaskReply(
            task=plan.task, loss=plan.training.loss, holdout=plan.holdout, protocol=PROTOCOL
        )

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Give a client a new session, whether or not it had joined before.

        It is admitted from the commit on. Raises Refused if it cannot take part.
        """
        run, has = self._run, request.capabilities
        with run.change():
            check_name(request.client)
            self._members.check_included(request.client)
            self._check_room(request.client)
            check_protocol(has.protocol)
            check_data(request.data, self._task)
            check_runtime(has.runtime)
            # First, since the reason why there is no step says more than a lacking method does.
            step = self._step.describe() if has.runtime == LITERT else None
            stages = _interned(abilities() & frozenset(has.stages))
            method = run.settings.optimization.method
            check_capabilities(has, self._codecs.required_stages(stages) | {method})
            session = secrets.randbits(63)
            data = request.data
            record = ClientRecord(
                session, data.num_examples, stages, has.runtime, data.num_held_out
            )
            again = self._members.add(request.client, record)
            self._standardization.add(request.client, data)
            run.store.after_commit(lambda: self._admitted(request, again))
            return pb.JoinReply(session=session, plan=run.plan, step=step, protocol=PROTOCOL)

    def _admitted(self, request: pb.JoinRequest, again: bool) -> None:
        self._presence.add(request.client)
        events.client_joined(self._run.plan.run, request, again)

    def _check_room(self, client: str) -> None:
        most = self._run.settings.limits.clients
        # The store also has those of the transaction under way.
        if client not in self._members and self._run.store.clients.count() >= most:
            raise Refused(
                pb.TOO_MANY_CLIENTS,
                f"the run has {most} clients, as many as it takes; join another run, or raise "
                "[limits] clients on the server",
            )


@functools.lru_cache(64)
def _interned(stages: frozenset[str]) -> frozenset[str]:
    """Intern a stage set, so that equal clients share one object."""
    return stages


def check_protocol(number: int) -> None:
    """Refuse a client whose protocol is too old for this server."""
    if number < OLDEST:
        raise Refused(
            pb.MISSING_CAPABILITY,
            f"this client speaks protocol {number}, the server {OLDEST} to {PROTOCOL}; update "
            "featherfed on the client",
        )


def check_runtime(runtime: str) -> None:
    """Refuse a runtime whose name is not a plain word; older clients send none."""
    if runtime and not is_plain(runtime):
        raise Refused(pb.MISSING_CAPABILITY, "a runtime has a plain name, such as keras or litert")


def check_capabilities(has: pb.Capabilities, needed: frozenset[str]) -> None:
    """Refuse a client that lacks a codec stage or the optimisation method."""
    missing = sorted(needed - set(has.stages) - set(has.methods))
    if missing:
        raise Refused(
            pb.MISSING_CAPABILITY,
            f"the run needs {', '.join(missing)}, which this client cannot do; update featherfed "
            "on it",
        )
