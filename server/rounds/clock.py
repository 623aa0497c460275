"""The server's clock: durations stay right when the machine's clock is set."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_STEP = 5.0
"""Seconds that one reading may advance the clock; see SteadyClock."""


class SteadyClock:
    """Seconds since the epoch, read from the machine's clock once and counted on by the monotonic.

    Setting the machine's clock (NTP, a person) changes nothing. Time in which the process does not
    run (suspend, SIGSTOP) counts as at most `LONGEST_STEP` seconds: clients could not be heard in
    it, so they are not late. Safe to call from several threads; the server reads it every second.
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


def begin_after_restart(stored: float, now: float, *, limit: float, grace: float) -> float:
    """Return when the phase that a restarted server is in began, on its new clock.

    `stored`: the begin by the former clock; it may lie in the future, if the machine's clock was
    put back, or long ago. At least `grace` of the phase's `limit` seconds are left for clients to
    come back, at most all.
    """
    return min(max(stored, now - max(0.0, limit - grace)), now)
