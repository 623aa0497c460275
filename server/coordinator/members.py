"""The clients that have joined: their sessions, and which of them are alive."""

from __future__ import annotations

import math

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import ClientRecord

PRESENCE = 60.0
"""Seconds for which a client counts as waiting for a task after a call; polls are shorter."""

SILENT_BEATS = 2.9
"""Heartbeats that a client may miss before it is lost: about three, with the loop's tick."""


class Members:
    """Keeps what is known of each client that has joined: record, session and last call."""

    def __init__(self, run: LiveRun) -> None:
        """Take up the clients in the run's store."""
        self._run = run
        self._records = run.store.clients.all()
        self._sessions = {record.session: client for client, record in self._records.items()}
        # After the last round, clients of before a restart get time to fetch the final model.
        seen = run.began if run.phase is Phase.FINISHED else -math.inf
        self._last_seen = dict.fromkeys(self._records, seen)

    def __contains__(self, client: str) -> bool:
        """Whether the client has joined."""
        return client in self._records

    def __len__(self) -> int:
        """Return how many clients have joined."""
        return len(self._records)

    def record(self, client: str) -> ClientRecord:
        """Return what a client said on joining; raise KeyError for an unknown one."""
        return self._records[client]

    def num_examples(self) -> dict[str, int]:
        """Return each client's number of examples."""
        return {client: record.num_examples for client, record in self._records.items()}

    def add(self, client: str, record: ClientRecord) -> bool:
        """Store a client, whose former session ends; return whether it had joined before."""
        self._run.store.clients.save(client, record, self._run.clock())
        again = client in self._records
        if again:
            del self._sessions[self._records[client].session]
        self._records[client] = record
        self._last_seen.setdefault(client, -math.inf)
        self._sessions[record.session] = client
        return again

    def client_of(self, session: int) -> str:
        """Return the client of a session, and record that it is alive; does not block.

        Raises Refused if the session is unknown or has ended.
        """
        try:
            client = self._sessions[session]
        except KeyError:
            raise Refused(pb.UNKNOWN_SESSION, "join first; after a restart, join again") from None
        self.hear(client)
        return client

    def hear(self, client: str) -> None:
        """Record that a client is alive; inference-only devices are ignored. Does not block."""
        if client in self._records:
            self._last_seen[client] = self._run.clock()

    def names(self) -> frozenset[str]:
        """Return all clients that have joined."""
        return frozenset(self._records)

    def present(self) -> frozenset[str]:
        """Return the clients that made a call within the last PRESENCE seconds."""
        now = self._run.clock()
        return frozenset(c for c, seen in self._last_seen.items() if now - seen <= PRESENCE)

    def silent(self, now: float) -> frozenset[str]:
        """Return the clients that have made no call for longer than a client in training may.

        Without heartbeats these are late clients only: the cohort has until the deadline.
        """
        state, beat = self._run.state, self._run.settings.clients.heartbeat
        limit = SILENT_BEATS * beat if beat else self._run.policy.deadline
        training = frozenset(state.cohort) - state.reported if beat else frozenset[str]()
        began = max(self._run.began, state.since)
        return frozenset(
            client
            for client in training | state.late
            if now - max(began, self._last_seen[client]) > limit
        )
