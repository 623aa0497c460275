"""Who makes a call, and how many calls without proof of a name it may make."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import Any

from featherfed.proto import federation_pb2 as pb
from featherfed.server.access.limits import Peer, Quotas, network
from featherfed.server.access.names import is_plain
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.presence import Presence
from featherfed.server.errors import Refused
from featherfed.server.rpc.authentication import proven_name
from featherfed.server.rpc.context import Context
from featherfed.server.rpc.forwarded import forwarded_peer
from featherfed.server.settings.settings import LimitSettings


class Callers:
    """Identifies the caller of each call, and refuses callers that exceed their rate."""

    def __init__(
        self, members: Members, presence: Presence, limits: LimitSettings, front_secret: str = ""
    ) -> None:
        """`front_secret`: what a front end shows; it tells whose calls it passes on."""
        self._front_secret = front_secret
        self._members = members
        self._presence = presence
        self.quotas = Quotas(limits)

    def client(self, session: int, context: Context) -> str:
        """Return the client of a session, which is alive, and count its call.

        Raises Refused if the session is unknown, the client is excluded, the credentials are
        another client's, or the caller is Busy.
        """
        try:
            client = self._members.client_of(session)
        except Refused:
            self.count_stranger(context)
            raise
        self._members.check_included(client)
        self._presence.hear(client)
        self.check_proven(client)
        if proven_name() is None:
            self.quotas.count_client(client)
        return client

    def check_proven(self, name: str) -> None:
        """Raise Refused if the caller has proven another name than `name`."""
        proven = proven_name()
        if proven not in (None, name):
            raise Refused(
                pb.WRONG_IDENTITY,
                f"these credentials belong to {proven!r}, who cannot act for others",
            )

    def connected_peer(self, context: Context) -> Peer:
        """Return who a call comes from, as far as the connection shows, or a front end says."""
        if identities := context.peer_identities():
            return Peer(identities[0].decode("utf-8", "replace"), proven=True)
        peer = context.peer()
        if self._front_secret:
            peer = forwarded_peer(context.invocation_metadata(), self._front_secret) or peer
        return Peer(network(peer), proven=False)

    def count_stranger(self, context: Context) -> None:
        """Count a call without a session; raise Busy if its address, or all together, make many."""
        if proven_name() is None:
            self.quotas.count_stranger(self.connected_peer(context).key)

    def polling(self, client: str) -> AbstractContextManager[None]:
        """Count an open poll of a client; raise Busy if it has too many."""
        return self.quotas.poll(client)

    def name_of(self, request: Any) -> str:
        """Return the caller's name as proven, or as the request's session or name claims, or ""."""
        if proven := proven_name():
            return proven
        name = getattr(request, "client", "") or getattr(request, "device", "")
        if not hasattr(request, "session"):
            return name if is_plain(name) else ""
        with suppress(Refused):
            return self._members.client_of(request.session)
        return ""


def authenticated_peer(context: Context) -> Peer:
    """Return who a call comes from, once it is authenticated."""
    name = proven_name()
    assert name is not None, "authentication comes before"
    return Peer(name, proven=True)
