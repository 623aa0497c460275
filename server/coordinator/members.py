"""The clients that have joined."""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused
from featherfed.server.storage.records import ClientRecord


class Members:
    """Knows every client that has joined, by name and by session."""

    def __init__(self, run: LiveRun) -> None:
        """Take up the clients in the run's store."""
        self._run = run
        self._records = run.store.clients.all()
        self._sessions = {record.session: client for client, record in self._records.items()}
        self._names: frozenset[str] | None = None

    def __contains__(self, client: str) -> bool:
        """Whether the client has joined."""
        return client in self._records

    def __len__(self) -> int:
        """Return how many clients have joined."""
        return len(self._records)

    def record(self, client: str) -> ClientRecord:
        """Return what a client said on joining; raise KeyError for an unknown one."""
        return self._records[client]

    def add(self, client: str, record: ClientRecord) -> bool:
        """Store a client, whose former session ends; return whether it had joined before.

        It is known from the commit on. The caller holds the run's lock.
        """
        self._run.store.clients.save(client, record, self._run.clock())
        self._run.store.after_commit(lambda: self._know(client, record))
        return client in self._records

    def _know(self, client: str, record: ClientRecord) -> None:
        if client in self._records:
            del self._sessions[self._records[client].session]
        else:
            self._names = None
        self._records[client] = record
        self._sessions[record.session] = client

    def client_of(self, session: int) -> str:
        """Return the client of a session; raise Refused if it is unknown or has ended.

        Does not block.
        """
        try:
            return self._sessions[session]
        except KeyError:
            raise Refused(pb.UNKNOWN_SESSION, "join first; after a restart, join again") from None

    def names(self) -> frozenset[str]:
        """Return all clients that have joined."""
        if self._names is None:
            self._names = frozenset(self._records)
        return self._names
