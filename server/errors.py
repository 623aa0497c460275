"""Errors of the server's core, by whose fault they are.

Exception
├── Refused(reason, detail)  the peer's: a call or an update that cannot be accepted
│   ├── Busy(what, wait)     too much at once: the same call may succeed later
│   └── CannotStore(detail)  the disk's: nothing was stored, and the same call may succeed later
└── ServerError (ValueError) the operator's: settings or a state directory that cannot be used
    ├── NotNow               a decision that cannot be carried out as things are
    ├── CannotListen         the port is in use, or the address is not this machine's
    └── Deposed              another server serves the run now, or has: begin anew from the database

Only rpc/calls.py turns them into gRPC status codes.
"""

from __future__ import annotations

from featherfed.proto import federation_pb2 as pb
from featherfed.proto.peer_text import printable

MAX_DETAIL = 400
"""Characters of a refusal that are sent, stored and shown; it may quote the peer's own text."""


class Refused(Exception):
    """A peer's request that is not accepted; nothing has changed."""

    def __init__(self, reason: pb.Reason, detail: str) -> None:
        self.reason = reason
        self.detail = printable(detail, MAX_DETAIL)
        super().__init__(f"{pb.Reason.Name(reason)}: {self.detail}")


class Busy(Refused):
    """One peer, or all together, asked for too much; the same call may succeed after `wait` s."""

    def __init__(self, what: str, wait: float) -> None:
        self.wait = wait
        super().__init__(pb.BUSY, f"{what}; try again in {max(wait, 0.1):.1f} s")


class CannotStore(Refused):
    """The server cannot write now: nothing has changed, and nothing was acknowledged."""

    def __init__(self, detail: str) -> None:
        super().__init__(pb.STORAGE, f"the server cannot write now ({detail}); try again later")


class ServerError(ValueError):
    """Settings, a port or a state directory that cannot be used; says what to do."""


class NotNow(ServerError):
    """What whoever runs the server wants cannot be done as things are; says why."""


class CannotListen(ServerError):
    """The server's address is in use, or not one of this machine."""


class Deposed(ServerError):
    """What this process knows of the run is not what the database holds: it must not write."""
