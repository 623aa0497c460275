"""Errors of the client; the tree says whose fault it is.

Exception
├── ClientError (ValueError)  the user's: data, plan or state directory that cannot be used
├── Rejected                  the server's word: this client cannot take part, and why
├── SessionLost               the server does not know the session: join again
├── BadRelease (ValueError)   the server's: a file that is not what it announced
├── StaleTask                 the round went on without this client: ask for the next task
└── Unreachable               the link's: retried for as long as the user allowed
"""

from __future__ import annotations


class ClientError(ValueError):
    """Data, a plan or a state directory that cannot be used; says what to do."""


class BadRelease(ValueError):
    """A released file that is not what the server announced; the file in place was left alone."""


class Rejected(Exception):
    """The server refuses the call for good; the message is its reason."""


class SessionLost(Exception):
    """The server does not know this session (any more); joining again gives a new one."""


class StaleTask(Exception):
    """The asked model version is not the newest any more; there is a newer task."""


class Unreachable(Exception):
    """No answer from the server, however often it was asked, or only that it is busy."""

    retry_after = 0.0
    """Seconds that the server asks to wait before the next try."""
    busy = False
    """Whether the server answered that it has too much to do."""
