"""Repeat calls to a server that does not answer, with exponential backoff and jitter."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from featherfed.edge_client.errors import Unreachable

log = logging.getLogger(__name__)

LONGEST_WAIT = 15.0
"""Most seconds of backoff between two tries."""
_RESUME_WITHIN = 0.5
"""Most seconds until a broken transfer is resumed; drawn at random, so clients spread out."""

T = TypeVar("T")


class Retry:
    """Repeats a call that raises Unreachable, until the server has been silent for too long."""

    def __init__(self, give_up_after: float) -> None:
        """Give up `give_up_after` seconds after the first of a row of failures."""
        self._give_up_after = give_up_after

    def run(self, call: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Return the result of `call`; raise its last Unreachable after giving up.

        `progress` returns how many bytes were transferred so far. A call that broke off after it
        transferred some is repeated soon, and any number of times.
        """
        while True:
            before = progress()
            try:
                return self._run_until_progress(call, progress)
            except Unreachable as error:
                if progress() <= before:
                    raise
                log.warning("broke off, going on after %d bytes: %s", progress(), error)
                time.sleep(random.uniform(0, _RESUME_WITHIN))

    def _run_until_progress(self, call: Callable[[], T], progress: Callable[[], int]) -> T:
        """Repeat until success, until some bytes were transferred, or until it gives up."""
        silence, before = _Silence(self._give_up_after), progress()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unreachable),
            wait=wait_before_retry,
            stop=lambda state: silence.too_long(state) or progress() > before,
            before_sleep=self._log_first_failure,
            reraise=True,
        )
        result: T = retrying(call)
        return result

    def _log_first_failure(self, state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            log.warning("no answer, trying again: %s", state.outcome.exception())


class _Silence:
    """Measures how long a server has not answered; a long poll before the first failure is none."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._began: float | None = None

    def too_long(self, state: tenacity.RetryCallState) -> bool:
        """Record a failed try; return whether the silence lasts for the limit's seconds."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Unreachable) and error.busy:  # a busy server has answered
            self._began = None
            return False
        if self._began is None:
            self._began = time.monotonic()
        return time.monotonic() - self._began >= self._limit


_backoff = tenacity.wait_random_exponential(multiplier=1, max=LONGEST_WAIT)


def wait_before_retry(state: tenacity.RetryCallState) -> float:
    """Return seconds to wait: exponential backoff with full jitter, from the first retry on.

    (AWS Architecture Blog, Exponential Backoff and Jitter, 2015.) The wait that a busy server asks
    for is added to it, so that its clients do not all return at once.
    """
    error = state.outcome.exception() if state.outcome else None
    hint = error.retry_after if isinstance(error, Unreachable) else 0.0
    return hint + float(_backoff(state))
