"""Who may join a run: checks that raise Refused with a reason that a person can act on."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass

from featherfed.compression.registry import abilities
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.protocol import LOSSES, OLDEST, PROTOCOL
from featherfed.server.access.names import check_name, is_plain
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.presence import Presence
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.storage.records import ClientRecord

LITERT = "litert"
"""The runtime of clients that train with an exported training step instead of Keras."""

MAX_EXAMPLES = 10**8
"""More than any client can train on; as a weight in the mean it would silence all others."""


@dataclass(frozen=True)
class DataShape:
    """What a client's data must look like to train the run's model."""

    example_shape: tuple[int, ...]
    """Height, width, channels."""
    class_names: tuple[str, ...]
    """By label."""


class Admission:
    """Admits clients that fit the run, and gives them sessions."""

    def __init__(
        self,
        run: LiveRun,
        members: Members,
        presence: Presence,
        codecs: UpdateCodecs,
        data_shape: DataShape,
        step: ExportedStep,
    ) -> None:
        self._run = run
        self._members = members
        self._presence = presence
        self._codecs = codecs
        self._data_shape = data_shape
        self._step = step

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Give a client a new session, whether or not it had joined before.

        It is admitted from the commit on. Raises Refused if it cannot take part.
        """
        run, has = self._run, request.capabilities
        with run.change():
            check_name(request.client)
            self._check_room(request.client)
            check_protocol(has.protocol, run.plan)
            check_data(request.data, self._data_shape)
            check_runtime(has.runtime)
            # First, since the reason why there is no step says more than a lacking method does.
            step = self._step.describe() if has.runtime == LITERT else None
            stages = _interned(abilities() & frozenset(has.stages))
            method = run.settings.optimization.method
            check_capabilities(has, self._codecs.required_stages(stages) | {method})
            session = secrets.randbits(63)
            record = ClientRecord(session, request.data.num_examples, stages, has.runtime)
            again = self._members.add(request.client, record)
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


def check_protocol(number: int, plan: pb.Plan) -> None:
    """Refuse a client whose protocol is too old for this server, or for the run's plan."""
    if number < OLDEST:
        raise Refused(
            pb.MISSING_CAPABILITY,
            f"this client speaks protocol {number}, the server {OLDEST} to {PROTOCOL}; update "
            "featherfed on the client",
        )
    if plan.training.loss and number < LOSSES:
        raise Refused(
            pb.MISSING_CAPABILITY,
            f"the run trains with the loss {plan.training.loss}, which a client of protocol "
            f"{number} may ignore; update featherfed on the client",
        )


def check_runtime(runtime: str) -> None:
    """Refuse a runtime whose name is not a plain word; older clients send none."""
    if runtime and not is_plain(runtime):
        raise Refused(pb.MISSING_CAPABILITY, "a runtime has a plain name, such as keras or litert")


def check_data(data: pb.DataSummary, wanted: DataShape) -> None:
    """Refuse data that do not fit the run's model."""
    if tuple(data.example_shape) != wanted.example_shape:
        raise Refused(
            pb.DATA_MISMATCH,
            f"examples of shape {tuple(data.example_shape)} do not fit the run's model, which "
            f"takes {wanted.example_shape}; convert the data or join another run",
        )
    names = wanted.class_names
    if not 1 <= data.num_classes <= len(names):
        raise Refused(
            pb.DATA_MISMATCH,
            f"labels up to {int(data.num_classes) - 1} do not fit the run's model, which has "
            f"{len(names)} classes",
        )
    if data.class_names and tuple(data.class_names) != names:
        raise Refused(
            pb.DATA_MISMATCH,
            f"classes {', '.join(data.class_names)} are not the run's {', '.join(names)}; in a "
            "folder of images, every class needs a subfolder, even an empty one",
        )
    if data.num_examples < 1:
        raise Refused(pb.DATA_MISMATCH, "there is not one example to train on")
    if data.num_examples > MAX_EXAMPLES:
        raise Refused(
            pb.BAD_EXAMPLE_COUNT,
            f"{data.num_examples} examples are more than any device has (at most {MAX_EXAMPLES})",
        )


def check_capabilities(has: pb.Capabilities, needed: frozenset[str]) -> None:
    """Refuse a client that lacks a codec stage or the optimisation method."""
    missing = sorted(needed - set(has.stages) - set(has.methods))
    if missing:
        raise Refused(
            pb.MISSING_CAPABILITY,
            f"the run needs {', '.join(missing)}, which this client cannot do; update featherfed "
            "on it",
        )
