"""What whoever runs the server decides while it runs: pause, end, extend, exclude."""

from __future__ import annotations

from featherfed.server.coordinator.extending import next_round
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.coordinator.update_codecs import UpdateCodecs
from featherfed.server.errors import NotNow
from featherfed.server.observability import events
from featherfed.server.rounds.transitions import Phase, Resumed

MOST_ROUNDS = 1_000_000
"""The most rounds that a run may be extended to."""


class Operator:
    """Carries out an operator's decisions; each is on disk when its method returns.

    Methods return what was done, in words. They raise NotNow if it cannot be done as things are,
    and CannotStore. Safe to call from several threads.
    """

    def __init__(self, run: LiveRun, members: Members, codecs: UpdateCodecs) -> None:
        self._run = run
        self._members = members
        self._codecs = codecs

    def pause(self) -> str:
        """Let no round open until `resume`; one that is open goes on."""
        run = self._run
        with run.lock:
            self._check_goes_on()
            if run.policy.paused:
                raise NotNow("the run is paused already")
            with run.change():
                run.set_paused(True)
            events.paused(run.plan.run, run.state.round, True)
            if run.phase is Phase.GATHERING:
                return "paused: no round opens"
            return f"round {run.state.round} goes on to its end; then no round opens"

    def resume(self) -> str:
        """Let rounds open again; the next one waits for its clients anew."""
        run = self._run
        with run.lock:
            if not run.policy.paused:
                raise NotNow("the run is not paused")
            with run.change():
                run.set_paused(False)
                run.apply(Resumed(run.clock()))
            events.paused(run.plan.run, run.state.round, False)
            return "resumed"

    def end(self) -> str:
        """End the run after the round that is open, or now if none is.

        A run has one round at the least. One that calibrates does so in a last round.
        """
        run = self._run
        with run.lock:
            self._check_goes_on()
            begin = max(2, next_round(run.state))
            total = run.rounds.ended(begin)
            if total.last >= run.rounds.last:
                raise NotNow(f"the run ends after round {run.rounds.last} anyway")
            planned = max(run.rounds.planned, run.store.controls.planned())
            with run.change():
                run.store.controls.set_planned(planned)
                run.change_rounds(total)
                run.store.after_commit(lambda: self._codecs.change_rounds(total))
            events.run_ended_early(run.plan.run, total.last)
            return f"the run ends after round {total.last}"

    def extend(self, rounds: int) -> str:
        """Let the run have so many more rounds than it has now; its clients join again."""
        run = self._run
        with run.lock:
            self._check_goes_on()
            wanted = run.rounds.now + rounds
            if rounds < 1 or wanted > MOST_ROUNDS:
                raise NotNow(f"extend the run by 1 to {MOST_ROUNDS - run.rounds.now} rounds")
            begin = next_round(run.state)
            total = run.rounds.changed(begin, wanted)
            with run.change():
                run.change_rounds(total)
                self._members.end_sessions()
                run.store.after_commit(lambda: self._codecs.change_rounds(total))
            events.rounds_raised(run.plan.run, begin, wanted)
            return f"the run has {total.last} rounds"

    def exclude(self, client: str) -> str:
        """Let a client take part no more: no round waits for it, and its calls are refused.

        What it has sent already counts.
        """
        self._change_excluded(client, True)
        return f"{client} is excluded"

    def include(self, client: str) -> str:
        """Let a client take part again; it joins again by itself only if it still runs."""
        self._change_excluded(client, False)
        return f"{client} may take part again"

    def _change_excluded(self, client: str, excluded: bool) -> None:
        run, members = self._run, self._members
        with run.lock:
            if client not in members:
                raise NotNow(f"no client named {client!r} has joined")
            if excluded == (client in members.excluded):
                raise NotNow(f"{client} is {'' if excluded else 'not '}excluded already")
            with run.change():
                members.set_excluded(client, excluded)
                run.store.after_commit(run.on_decision)
            events.client_excluded(run.plan.run, run.state.round, client, excluded)

    def _check_goes_on(self) -> None:
        if self._run.phase is Phase.FINISHED:
            raise NotNow(
                "the run has finished; `featherfed serve RUN.toml --rounds N` goes on with it"
            )
