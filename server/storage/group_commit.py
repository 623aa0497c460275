"""Changes of many callers in one transaction: one thread, one commit, one wait for the disk."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple, TypeVar, cast

from featherfed.server.errors import CannotStore, Refused

T = TypeVar("T")

MOST = 256
"""Callers whose changes are committed together, at most."""
LONGEST_SECONDS = 0.02
"""A commit takes in no more changes then: others go on meanwhile, such as uploads being read."""


class _Outcome(NamedTuple):
    result: Any = None
    error: Exception | None = None


_Work = Callable[[], Any]


class GroupCommit:
    """Runs functions that read and change a store, those that wait at the same time together."""

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        """`change`: commits all changes of its block, or undoes them; within another, by itself."""
        self._change = change
        self._thread = ThreadPoolExecutor(1, "commit")
        self._waiting: list[tuple[_Work, asyncio.Future[Any]]] = []
        self._busy = False

    async def run(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """Return what `work` returns, once what it and others have changed is on disk.

        Raises what `work` raises, whose changes are then undone, or CannotStore. `work` may be
        called a second time if a change of others fails, so what it does beside the store must
        wait for the commit. It is done even if the caller is cancelled.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((functools.partial(work, *args, **named), future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._begin, loop)  # with all that come in this turn of the loop
        return cast(T, await future)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        if not batch:
            self._busy = False
            return

        def end(done: asyncio.Future[list[_Outcome]]) -> None:
            outcomes = done.result()
            self._waiting = batch[len(outcomes) :] + self._waiting
            for (_, future), outcome in zip(batch, outcomes, strict=False):
                if future.cancelled():
                    continue
                if outcome.error is None:
                    future.set_result(outcome.result)
                else:
                    future.set_exception(outcome.error)
            self._begin(loop)

        works = [work for work, _ in batch]
        loop.run_in_executor(self._thread, self._commit, works).add_done_callback(end)

    def _commit(self, works: list[_Work]) -> list[_Outcome]:
        if len(works) > 1:
            with suppress(Exception), self._change():
                return self._several(works)
        # By themselves: nobody is refused because another's work, or the disk, has failed.
        return [self._alone(work) for work in works]

    def _several(self, works: list[_Work]) -> list[_Outcome]:
        """Return the outcomes of as many works as a commit may take in."""
        until, outcomes = time.monotonic() + LONGEST_SECONDS, list[_Outcome]()
        while len(outcomes) < len(works) and time.monotonic() <= until:
            outcomes.append(self._part(works[len(outcomes)]))
        return outcomes

    def _part(self, work: _Work) -> _Outcome:
        try:
            with self._change():
                return _Outcome(work())
        except CannotStore:
            raise
        except Refused as refusal:
            return _Outcome(error=refusal)

    def _alone(self, work: _Work) -> _Outcome:
        try:
            with self._change():
                return _Outcome(work())
        except Exception as error:
            return _Outcome(error=error)
