"""Runs the cases of a sweep on a Ray cluster: a task each, with its own cores and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from featherfed.cli.sweep_outcome import Outcome
from featherfed.server.errors import ServerError
from featherfed.sweep.grid import Case

RETRIES = 3
"""How often a case is run again when its node or worker died."""


class RayRunner:
    """Runs cases as tasks; those of a node that dies run again on another.

    Every node needs featherfed with its extra `sweep`, and the data set at the same path.
    """

    def __init__(
        self, address: str, memory: int, workers: int, on_rounds: Callable[[int], None]
    ) -> None:
        """`address`: of a cluster, "local" for one of this machine, "auto" for what is there.

        `memory`: bytes that a case may need, `workers`: processes of it, with a core each; Ray
        starts no more cases on a node than fit. Raises ServerError if there is no such cluster, or
        no node with so many cores.
        """
        self._memory = memory
        self._workers = workers
        self._on_rounds = on_rounds
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise ServerError(
                f"no Ray cluster at {address}: {error}; start one by `ray start --head`, or leave "
                "the address out"
            ) from error
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        if max(nodes, default=0) < workers:  # Ray would wait for such a node for ever
            ray.shutdown()
            raise ServerError(
                f"run_workers = {workers}, and no node of the Ray cluster at {address} has more "
                f"than {max(nodes, default=0):.0f} cores; lower it in the sweep file"
            )

    def run(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """Yield how each case went, as they end."""
        workers = self._workers
        task = ray.remote(num_cpus=workers, memory=self._memory, max_retries=RETRIES)(_run)
        running = {task.remote(case, workers): case for case in cases}
        try:
            while running:
                (ended,), _ = ray.wait(list(running), num_returns=1)
                case = running.pop(ended)
                outcome = _outcome(case, ended)
                self._on_rounds(case.settings.rounds)
                yield outcome
        finally:
            for left in running:
                ray.cancel(left, force=True)
            ray.shutdown()


def _run(case: Case, workers: int) -> dict[str, Any]:
    from featherfed.cli.sweep_case import run_case
    from featherfed.models.threads import ONE_THREAD

    ONE_THREAD.use()
    return run_case(case, workers=workers)


def _outcome(case: Case, ended: ray.ObjectRef[dict[str, Any]]) -> Outcome:
    try:
        return Outcome(case, ray.get(ended))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return Outcome.of_error(case, cause if isinstance(cause, Exception) else error)
    except ray.exceptions.RayError as error:
        return Outcome.of_error(case, error)
