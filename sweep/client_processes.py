"""Trains the clients of a simulated run in several processes: a fixed share of them in each."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.context import SpawnContext

from featherfed.edge_client.errors import Rejected, SessionLost, StaleTask
from featherfed.server.errors import ServerError
from featherfed.sweep.client_worker import Call, Ended, Share, work
from featherfed.sweep.local import LocalServer, LocalTransport

NAMED_CLIENTS = 3
"""How many of a worker's clients an error names."""


class WorkerDied(RuntimeError):
    """A process that trained some of a simulated run's clients has died; says which, and how."""


def run_in_processes(server: LocalServer, shares: Sequence[Share]) -> list[bytes]:
    """Run each share of the clients in a process; return the digests of the models they end with.

    Raises the first error of a client or of the server, WorkerDied for a process that dies, and
    ServerError if a share cannot be sent to another process.
    """
    # TensorFlow does not survive a fork.
    context = multiprocessing.get_context("spawn")
    errors: list[BaseException] = []
    workers: list[_Worker] = []

    def fail(error: BaseException) -> None:
        errors.append(error)
        server.fail()
        for worker in workers:
            worker.kill()

    threads = []
    try:
        for number, share in enumerate(shares, 1):
            workers.append(_Worker(f"{number} of {len(shares)}", share, server, fail, context))
        threads = [threading.Thread(target=worker.serve, daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:
        fail(error)
        for thread in threads:
            thread.join()
        raise
    finally:
        for worker in workers:
            worker.close()
    if errors:
        raise errors[0]
    return [digest for worker in workers for digest in worker.digests]


class _Worker:
    """One worker process, and the answers to its clients' calls."""

    def __init__(
        self,
        number: str,
        share: Share,
        server: LocalServer,
        fail: Callable[[BaseException], None],
        context: SpawnContext,
    ) -> None:
        """Start it. `fail` is called, in any thread, with what ends the run."""
        self._number = number
        self._names = [profile.name for profile in share.profiles]
        self._server = server
        self._transport = LocalTransport(server)
        self._fail = fail
        self._sending = threading.Lock()
        self.digests: tuple[bytes, ...] = ()
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(share, other))
        try:
            self._process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self._pipe.close()
            raise ServerError(
                f"workers: what clients train with cannot be sent to another process ({error}); "
                "define your training loop at the top level of a module, or train in one process"
            ) from error
        finally:
            other.close()

    def serve(self) -> None:
        """Answer calls until all clients of the worker have ended, or one has failed."""
        with ThreadPoolExecutor(len(self._names)) as pool:  # any of them may wait for a task
            try:
                while not isinstance(message := self._pipe.recv(), Ended):
                    if isinstance(message, Exception):
                        self._fail(message)
                        return
                    pool.submit(self._answer, message)
                self.digests = message.digests
            except (EOFError, OSError):
                self._process.join()
                self._fail(self._died())

    def _answer(self, call: Call) -> None:
        try:
            with self._server.lock:
                try:
                    reply = getattr(self._transport, call.method)(*call.arguments)
                except (Rejected, SessionLost, StaleTask) as error:
                    reply = error
            # A process that has died is noticed by `serve`.
            with self._sending, suppress(OSError):
                self._pipe.send((call.client, reply))
        except BaseException as error:
            self._fail(error)

    def _died(self) -> WorkerDied:
        code, names = self._process.exitcode, ", ".join(self._names[:NAMED_CLIENTS])
        more = len(self._names) - NAMED_CLIENTS
        clients = f"{names} and {more} more" if more > 0 else names
        if code is not None and code < 0:
            how = f"was killed (signal {-code}), perhaps for lack of memory: try fewer workers"
        else:
            how = (
                f"ended with status {code}; what it wrote says why. A script that uses workers "
                'starts them below `if __name__ == "__main__":`'
            )
        return WorkerDied(f"worker {self._number}, which trains {clients}, {how}")

    def kill(self) -> None:
        """End the process now; it has nothing to lose."""
        self._process.kill()

    def close(self) -> None:
        """Wait for the process to end, and let go of it."""
        self._process.join()
        self._pipe.close()
        self._process.close()
