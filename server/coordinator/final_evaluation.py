"""How good the final version is on the clients' own examples."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.data_check import most_held_out
from featherfed.server.coordinator.evaluation import read_sums
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.rounds.transitions import Phase


class FinalEvaluation:
    """Takes each client's report on the final version once, and adds them up."""

    def __init__(
        self, run: LiveRun, members: Members, held_out: HeldOutScores, by_clients: bool
    ) -> None:
        """`by_clients`: clients say how good versions are, since the server has no data."""
        self._run = run
        self._members = members
        self._held_out = held_out
        self._by_clients = by_clients
        self._settled = False

    @property
    def wanted(self) -> bool:
        """Whether clients report on the final version."""
        return self._run.plan.holdout > 0

    def report(self, client: str, report: pb.EvaluationReport) -> pb.EvaluationReceipt:
        """Store a client's report, which counts once, from the commit on.

        Raises Refused if nobody asked for it, or it holds what no examples give.
        """
        run = self._run
        with run.change():
            state = run.state
            if not self.wanted:
                raise Refused(pb.MALFORMED, "in this run, clients do not evaluate models")
            if state.phase is not Phase.FINISHED or report.version != state.round:
                raise Refused(
                    pb.UNKNOWN_VERSION, f"version {report.version} is not this run's final one"
                )
            most = most_held_out(self._members.record(client))
            sums = read_sums(self._held_out, report.evaluation, most)
            run.store.evaluations.add(report.version, client, sums)
            if self._settled:
                self.settle()
        return pb.EvaluationReceipt()

    def missing(self, clients: frozenset[str]) -> frozenset[str]:
        """Return those of some clients that hold examples out and have not reported."""
        if not self.wanted or self._run.phase is not Phase.FINISHED:
            return frozenset()
        reported = self._run.store.evaluations.reporters(self._run.state.round)
        return frozenset(
            client for client in clients - reported if self._members.record(client).num_held_out
        )

    def settle(self) -> None:
        """Make the reports so far, and later ones at once, the final version's scores.

        Only if clients say how good versions are.
        """
        run = self._run
        self._settled = True
        if not self._by_clients or run.phase is not Phase.FINISHED:
            return
        with run.change():
            version = run.state.round
            reports = [sums for sums in run.store.evaluations.of(version).values() if sums]
            scores = self._held_out.scores(reports)
            if scores and scores != run.store.versions.get(version).scores:
                run.store.versions.set_scores(version, scores)
                run.store.after_commit(
                    lambda: events.version_evaluated(run.plan.run, version, scores, len(reports))
                )
