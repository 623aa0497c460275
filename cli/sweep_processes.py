"""Runs the cases of a sweep in processes of this machine."""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from featherfed.cli import sweep_worker
from featherfed.cli.sweep_outcome import Outcome
from featherfed.sweep.grid import Case

KILLED = "its worker was killed, perhaps for lack of memory: try fewer --workers"
_END = b"e"  # no sweep_worker.ROUND


class ProcessRunner:
    """Runs some cases side by side, each in a process that may run several, one by one."""

    def __init__(
        self,
        workers: int,
        on_rounds: Callable[[int], None],
        start: Callable[[Connection], None] = sweep_worker.start,
        run: Callable[[Case], dict[str, Any]] = sweep_worker.run,
    ) -> None:
        """`on_rounds` is called, in a thread, with the number of rounds that were finished.

        `start` prepares a worker process, `run` returns a case's metrics there.
        """
        # TensorFlow does not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._workers = workers
        self._on_rounds = on_rounds
        self._start = start
        self._run_case = run

    def run(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """Yield how each case went, as they end.

        When a worker is killed, nobody knows by which case: those that ran then run again one at
        a time, so that the others go on and only the one that is to blame fails.
        """
        waiting = deque(cases)
        while waiting:
            for suspect in (yield from self._run(waiting, self._workers)):
                if (yield from self._run(deque([suspect]), 1)):
                    yield Outcome(suspect, error=KILLED)

    def _run(self, waiting: deque[Case], workers: int) -> Generator[Outcome, None, list[Case]]:
        """Take cases from `waiting` until all have ended; return those in a worker that died."""
        received, sent = self._context.Pipe(duplex=False)
        counter = threading.Thread(target=self._count, args=(received,))
        counter.start()
        pool = ProcessPoolExecutor(workers, self._context, self._start, (sent,))
        running: dict[Future[dict[str, Any]], Case] = {}
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running[pool.submit(self._run_case, waiting[0])] = waiting[0]
                    waiting.popleft()
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    outcome = _outcome(running[future], future)
                    del running[future]
                    yield outcome
        except BrokenProcessPool:
            return list(running.values())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            sent.send_bytes(_END)
            counter.join()
            sent.close()
            received.close()
        return []

    def _count(self, rounds: Connection) -> None:
        """Tell of every finished round, until _END."""
        while rounds.recv_bytes() != _END:
            self._on_rounds(1)


def _outcome(case: Case, future: Future[dict[str, Any]]) -> Outcome:
    """Return how an ended case went; raise BrokenProcessPool if its worker may have died."""
    try:
        return Outcome(case, future.result())
    except BrokenProcessPool:
        raise
    except Exception as error:
        return Outcome.of_error(case, error)
