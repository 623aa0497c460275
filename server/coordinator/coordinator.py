"""One run: the parts that answer its clients, around one state and one lock.

Knows neither gRPC nor TensorFlow nor the machine's clock. Safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.sketch import PROFILE
from featherfed.proto import federation_pb2 as pb
from featherfed.server.aggregation.decoded_updates import DecodedUpdates
from featherfed.server.aggregation.strategy import AggregationStrategy
from featherfed.server.coordinator.admission import Admission
from featherfed.server.coordinator.client_health import ClientHealth
from featherfed.server.coordinator.closing import RoundClosing
from featherfed.server.coordinator.evaluation import Evaluator
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.coordinator.final_evaluation import FinalEvaluation
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.model_files import FinalModelFiles, Quantizer
from featherfed.server.coordinator.open_round import OpenRound
from featherfed.server.coordinator.opening import open_run
from featherfed.server.coordinator.operator import Operator
from featherfed.server.coordinator.presence import Devices, Presence
from featherfed.server.coordinator.refusal_log import RefusalLog
from featherfed.server.coordinator.standardization import Standardization
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.tasks import Tasks
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.coordinator.updates import Updates
from featherfed.server.observability import events
from featherfed.server.observability.snapshot import Moment
from featherfed.server.observability.status import describe
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.rounds.transitions import Phase, RunState, Tick, clients_missing, due
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.group_commit import GroupCommit
from featherfed.server.storage.store import Store
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.task import Task


class Coordinator:
    """Puts a run together from its parts: `admission`, `tasks`, `updates` ... serve its clients."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        plan: pb.Plan,
        manifest: Manifest,
        task: Task,
        evaluator: Evaluator | None,
        clock: Callable[[], float],
        first_weights: Sequence[Array] | None = None,
        secret: int | None = None,
        step: ExportedStep | None = None,
        quantizer: Quantizer | None = None,
    ) -> None:
        """Create the run that `settings` describe, or take up the one in `store`.

        `task`: what is learned, as in `plan`. `evaluator`: None if the server has no data; then
        clients evaluate, if the plan lets them hold examples out.

        `clock`: seconds since the epoch, never set back. `first_weights`: version 0, if it is not
        what the plan's seed gives. `secret`: seed of cohorts and slots, below 2**63, random if
        None. `step`: for clients that train with LiteRT. `quantizer`: makes the int8 file that
        clients measure and evaluate if the server has no data. Raises ServerError if the store
        holds another run.
        """
        settings.check_task(task)
        decoded = DecodedUpdates(manifest.sent)
        # Raises before there is a run.
        strategy = AggregationStrategy(settings, manifest.sent, store, decoded)
        rounds = open_run(settings, store, plan, manifest, first_weights, secret, clock())
        settings = settings.with_rounds(rounds)
        self.store = store
        self.plan = plan
        self.manifest = manifest
        self.training_step = step or ExportedStep()
        self.task = task
        self.run = LiveRun(settings, manifest, plan, store, clock, rounds)
        self.standardization = Standardization(self.run, task)
        self.commits = GroupCommit(self.run.change)
        self.members = Members(self.run)
        self.presence = Presence(self.run, self.members.records())
        self.devices = Devices(self.run)
        self.health = ClientHealth()
        codecs = UpdateCodecs(settings, manifest.sent, plan.report or PROFILE, task.leading, rounds)
        codecs.later_factor = store.journal.byte_factor(self.run.state.round)
        open_round = OpenRound(self.run, codecs)
        open_round.check_journal()
        self.admission = Admission(
            self.run, self.members, self.presence, codecs, task, self.standardization,
            self.training_step,
        )  # fmt: skip
        held_out = HeldOutScores(task)
        self.updates = Updates(self.run, self.members, open_round, codecs, held_out, decoded)
        self.final_evaluation = FinalEvaluation(
            self.run, self.members, held_out, by_clients=evaluator is None
        )
        self.model_files = FinalModelFiles(
            self.run, self.members, self.presence, held_out, self.final_evaluation,
            quantizer if settings.evaluation.by_clients_int8 else None, self.newest_weights,
        )  # fmt: skip
        self.tasks = Tasks(
            self.run, self.members, self.presence, open_round, self.standardization,
            self.model_files,
        )  # fmt: skip
        self.refusals = RefusalLog(self.run, self.members)
        self.operator = Operator(self.run, self.members, codecs)
        self.closing = RoundClosing(
            self.run, open_round, codecs, strategy, evaluator, held_out, self.standardization,
            decoded,
        )  # fmt: skip
        version = self.newest_version
        again = bool(self.members or version)
        events.run_opened(plan.run, self.run.state, version, again=again)

    @property
    def settings(self) -> Settings:
        """The settings, with the number of rounds that the run has now."""
        return self.run.settings

    @property
    def phase(self) -> Phase:
        """The phase the run is in."""
        return self.run.phase

    def tick(self) -> RunState:
        """Open or close a round that is due; return the state after that."""
        run = self.run
        with run.lock:
            now, state = run.clock(), run.state
            run.apply(self._look(now, state))
            return run.state

    def _look(self, now: float, state: RunState) -> Tick:
        """Return who is there; the caller holds the run's lock."""
        present = self.presence.present()
        excluded = self.members.excluded
        if state.lost or state.late or excluded:
            present -= state.lost | state.late | excluded
        silent, _ = self.presence.silent(now)
        return Tick(now, present, self.members.names(), silent | excluded)

    def due_in(self) -> float:
        """Return in how many seconds time alone may make a round due; infinity if it cannot."""
        run = self.run
        with run.lock:
            now = run.clock()
            _, next_silent = self.presence.silent(now)
            return min(next_silent, due(run.state, now, run.policy)) - now

    def aggregate(self) -> None:
        """Make the next version from the closed round, or raise CannotStore: call it again then."""
        self.closing.aggregate()

    @property
    def newest_version(self) -> int:
        """The number of the newest version."""
        return self.store.versions.newest().version

    def newest_weights(self) -> list[Array]:
        """Return the newest version's weights."""
        return self.store.versions.model(self.manifest)[0]

    def scaling(self) -> Scaling | None:
        """Return how the clients' data are standardised.

        None before the first round has opened, or if the task needs none.
        """
        return self.standardization.scaling

    def newest_model(self) -> tuple[int, list[Array]]:
        """Return the newest version's number and its weights, which belong together."""
        with self.run.lock:
            return self.newest_version, self.newest_weights()

    def everyone_has_finished(self) -> bool:
        """Whether every client that is still present has the final model, and has evaluated it.

        The latter only where clients evaluate, of those that hold examples out; the int8 file too,
        of those that take part in making it.
        """
        with self.run.lock:
            if self.run.phase is not Phase.FINISHED:
                return False
            have = self.store.ledger.clients_with_model(self.run.ledger_round)
            present = self.presence.present() - self.members.excluded
            return present <= have and not (
                self.final_evaluation.missing(present) | self.model_files.missing(present)
            )

    def settle(self) -> None:
        """Make what clients told of the final model so far its scores and its ranges."""
        self.final_evaluation.settle()
        self.model_files.close()

    def report_evaluation(self, client: str, report: pb.EvaluationReport) -> pb.EvaluationReceipt:
        """Store what a client tells of the final version, or of its int8 file; raise Refused."""
        if report.digest:
            return self.model_files.report_sums(client, report)
        if report.goes_on:
            self.model_files.take_part(client)
        return self.final_evaluation.report(client, report)

    def moment(self) -> Moment:
        """Return where the run is now, for a snapshot; holds the run's lock for a copy alone."""
        run = self.run
        with run.lock:
            now, state, policy = run.clock(), run.state, run.policy
            gathers = state.phase is Phase.GATHERING
            return Moment(
                now,
                state,
                policy,
                clients_missing(state, self._look(now, state), policy) if gathers else 0,
                dict(self.members.records()),
                self.members.excluded,
                self.presence.last_calls(),
                {} if run.settings.private else dict(self.updates.seconds),
                self.health.all(),
            )

    def status(self) -> pb.StatusReply:
        """Return the run's status, for people and progress bars."""
        with self.run.lock:
            clients = len(self.members)
            leading = self.task.leading
            return describe(
                self.plan.run, self.run.state, self.run.policy, self.store, clients, leading
            )
