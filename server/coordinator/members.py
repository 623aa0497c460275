"""The clients that have joined."""

from __future__ import annotations

import secrets

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused
from featherfed.server.storage.records import ClientRecord


class Members:
    """Knows every client that has joined, by name and by session."""

    def __init__(self, run: LiveRun) -> None:
        """Take up the clients in the run's store."""
        self._run = run
        self._read()
        self._read_excluded()

    def _read(self) -> None:
        records = self._run.store.clients.all()
        self._records = records
        self._sessions = {record.session: client for client, record in records.items()}
        self._names: frozenset[str] | None = None

    def __contains__(self, client: str) -> bool:
        """Whether the client has joined."""
        return client in self._records

    def __len__(self) -> int:
        """Return how many clients have joined."""
        return len(self._records)

    def records(self) -> dict[str, ClientRecord]:
        """Return what all clients said on joining, by name; the caller changes nothing in it."""
        return self._records

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

    @property
    def excluded(self) -> frozenset[str]:
        """The clients that take no part any more."""
        return self._excluded

    def set_excluded(self, client: str, excluded: bool) -> None:
        """Store whether a client is excluded; it holds from the commit on.

        The caller holds the run's lock. Clients keep their sessions.
        """
        run = self._run
        if excluded:
            run.store.controls.exclude(client, run.clock())
        else:
            run.store.controls.include(client)
        run.store.after_commit(self._read_excluded)

    def _read_excluded(self) -> None:
        self._excluded = self._run.store.controls.excluded()
        self._names = None

    def check_included(self, client: str) -> None:
        """Raise Refused if a client is excluded. Does not block."""
        if client in self._excluded:
            raise Refused(pb.EXCLUDED, f"whoever runs this server has excluded {client}; ask there")

    def end_sessions(self) -> None:
        """Store new sessions for all clients, which join again; they hold from the commit on.

        The caller holds the run's lock.
        """
        self._run.store.clients.end_sessions(secrets.randbits(62))
        self._run.store.after_commit(self._read)

    def client_of(self, session: int) -> str:
        """Return the client of a session; raise Refused if it is unknown or has ended.

        Does not block.
        """
        try:
            return self._sessions[session]
        except KeyError:
            raise Refused(pb.UNKNOWN_SESSION, "join first; after a restart, join again") from None

    def names(self) -> frozenset[str]:
        """Return all clients that have joined, without those that are excluded."""
        if self._names is None:
            self._names = frozenset(self._records) - self._excluded
        return self._names
