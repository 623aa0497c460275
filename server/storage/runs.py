"""The run's own rows: identity, state, plan, and counters that no other table keeps."""

from __future__ import annotations

import json

from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.growing_set import GrowingSet
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.storage.database import Database
from featherfed.server.storage.records import RunRecord, StoredPlan

DUPLICATE_UPDATES = "duplicate_updates"
"""Counter of updates that arrived again after they were accepted."""


class Runs:
    """Stores what a run is and where it stands."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, record: RunRecord, secret: int, state: RunState) -> None:
        """Insert the run; `secret` is the seed of cohorts and slots, below 2**63."""
        self._database.run(
            "INSERT INTO run VALUES (1, ?, ?, ?, ?, ?)",
            record.name, record.fingerprint, record.started, secret, _state_to_json(state),
        )  # fmt: skip

    def record(self) -> RunRecord | None:
        """Return the run's identity, None if none was created yet."""
        rows = self._database.run("SELECT name, fingerprint, started FROM run")
        return RunRecord(*rows[0]) if rows else None

    def secret(self) -> int:
        """Return the seed of cohorts and slots."""
        return int(self._database.run("SELECT secret FROM run")[0][0])

    def state(self) -> RunState:
        """Return the state saved last; the journal has the clients that reported since."""
        return _state_from_json(self._database.run("SELECT state FROM run")[0][0])

    def save_state(self, state: RunState) -> None:
        """Replace the state, all but `reported`, which follows from the journal."""
        self._database.run("UPDATE run SET state = ?", _state_to_json(state))

    def save_plan(self, stored: StoredPlan) -> None:
        """Insert the plan unless there is one."""
        blob = stored.plan.SerializeToString(deterministic=True)
        sql = "INSERT INTO plan VALUES (1, ?, ?) ON CONFLICT DO NOTHING"
        self._database.run(sql, blob, int(stored.seeded))

    def plan(self) -> StoredPlan | None:
        """Return the plan, None in a database of a version that stored none."""
        rows = self._database.run("SELECT plan, seeded FROM plan")
        return StoredPlan(pb.Plan.FromString(rows[0][0]), bool(rows[0][1])) if rows else None

    def save_settings(self, text: str) -> None:
        """Replace the settings of the last start."""
        sql = (
            "INSERT INTO settings VALUES (1, ?) "
            "ON CONFLICT (id) DO UPDATE SET settings = excluded.settings"
        )
        self._database.run(sql, text)

    def settings(self) -> str | None:
        """Return the settings of the last start, None if an older version was started last."""
        rows = self._database.run("SELECT settings FROM settings")
        return str(rows[0][0]) if rows else None

    def save_total(self, total: TotalRounds) -> None:
        """Replace the changes of the run's number of rounds."""
        with self._database.transaction():
            self._database.run("DELETE FROM extensions")
            for round_, rounds in total.raised:
                self._database.run("INSERT INTO extensions VALUES (?, ?)", round_, rounds)

    def total_rounds(self, rounds: int) -> TotalRounds:
        """Return how many rounds the run has; it began with `rounds` if no plan is stored.

        A run that an older version began never calibrates.
        """
        known = self.plan()
        if known is None:
            return TotalRounds(rounds, tuple(self.extensions()))
        plan = known.plan
        calibrates = plan.last_round > plan.rounds
        return TotalRounds(plan.rounds, tuple(self.extensions()), calibrates)

    def extensions(self) -> list[tuple[int, int]]:
        """Return the changes of the number of rounds, in order of rounds."""
        rows = self._database.run("SELECT round, rounds FROM extensions ORDER BY round")
        return [(int(row[0]), int(row[1])) for row in rows]

    def increment(self, counter: str) -> None:
        """Add one to a counter."""
        self._database.run(
            "INSERT INTO counts VALUES (?, 1) "
            "ON CONFLICT (name) DO UPDATE SET value = counts.value + 1",
            counter,
        )

    def counter(self, name: str) -> int:
        """Return a counter's value, 0 if it was never incremented."""
        rows = self._database.run("SELECT value FROM counts WHERE name = ?", name)
        return int(rows[0][0]) if rows else 0


def _state_to_json(state: RunState) -> str:
    fields = {**vars(state), "reported": []}
    sets = {name: sorted(value) for name, value in fields.items() if isinstance(value, frozenset)}
    return json.dumps({**fields, **sets})


def _state_from_json(text: str) -> RunState:
    fields = json.loads(text)
    fields["reported"] = GrowingSet(fields["reported"])
    for name in ("lost", "late"):
        fields[name] = frozenset(fields.get(name, ()))
    cohort = tuple(fields["cohort"])
    return RunState(**{**fields, "phase": Phase(fields["phase"]), "cohort": cohort})
