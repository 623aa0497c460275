"""Errors of the client, by cause and remedy.

Exception
├── ClientError (ValueError)  data, plan or state directory cannot be used: the user must act
├── Rejected                  the server refuses this client and says why: the user must act
│   └── TooLarge              the server answers with more than any answer can be
├── SessionLost               the server does not know the session: join again
├── BadRelease (ValueError)   the server sent another file than it announced
├── StaleTask                 the task's model version is outdated: ask for the next task
└── Unreachable               no answer from the server: retried until the client gives up
"""

from __future__ import annotations

UNKNOWN_HERE = "unknown to this version: update featherfed on this device"
"""Ends a message on something that a newer server sent."""


class ClientError(ValueError):
    """Data, a plan or a state directory cannot be used; the message says what to do."""


class BadRelease(ValueError):
    """The server sent another file than it announced; the old file was not replaced."""


class Rejected(Exception):
    """The server refuses the call, now and later; the message is its reason."""


class TooLarge(Rejected):
    """The server's answer is larger than any can be by its plan; the rest of it was not read."""


class SessionLost(Exception):
    """The server does not know the session (any more); joining again opens a new one."""


class StaleTask(Exception):
    """The requested model version is not the newest any more; there is a newer task."""


class Unreachable(Exception):
    """The server does not answer, or only answers that it is busy."""

    retry_after = 0.0
    """Seconds that the server asks to wait before the next try."""
    busy = False
    """Whether the server answered that it is overloaded."""
