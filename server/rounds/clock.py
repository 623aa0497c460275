"""The server's clock: durations do not depend on what happens to the machine's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_STEP = 5.0


class SteadyClock:
    """Seconds since the epoch as the machine's clock had them at first, and steady from then on.

    A clock that is set (NTP, a person) changes nothing. Time in which the process does not run
    (suspend, SIGSTOP) counts as `LONGEST_STEP` seconds at the most between two readings: who could
    not be heard in it is not late. Safe to call from several threads; the server reads it several
    times a second.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = wall()
        self._monotonic = monotonic
        self._read = monotonic()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the time."""
        with self._lock:
            read = self._monotonic()
            self._now += min(read - self._read, LONGEST_STEP)
            self._read = read
            return self._now


def resume(since: float, now: float, *, limit: float, grace: float) -> float:
    """Return when a phase began that a restart finds, in terms of the new process's clock.

    `since` may lie in the future, if the clock was put back, or long ago. At least `grace` seconds
    of the phase's `limit` are left for clients to come back, and at most all of it.
    """
    return min(max(since, now - max(0.0, limit - grace)), now)
