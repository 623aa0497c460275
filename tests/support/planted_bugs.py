"""Bugs that this project once had, put back one at a time, and how long it takes to find each.

`PYTHONPATH=tests python tests/support/planted_bugs.py [NAME ...]` writes
benchmarks/results/robustness/planted_bugs.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherfed.compression import files
from featherfed.edge_client import grpc_connection, model_sync, partial_download, state, statefile
from featherfed.edge_client.errors import ClientError, Rejected
from featherfed.edge_client.state_directory import StateDirectory
from featherfed.server import loop
from featherfed.server.rounds import clock
from featherfed.server.rpc import calls
from featherfed.server.transfers import uploads
from featherfed.simulator import server_process
from featherfed.simulator.simulation import Simulation

RESULT = (
    Path(__file__).parent.parent.parent
    / "benchmarks" / "results" / "robustness" / "planted_bugs.json"
)  # fmt: skip
ROUNDS = 5
FIRST_SEED = 1
MOST_RUNS = 1000

Plant = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class PlantedBug:
    """A bug of the past: what was wrong, and the commit that mended it."""

    name: str
    commit: str
    plant: Plant


@contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute inside the block."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def stale_task() -> AbstractContextManager[None]:
    """A client whose task is out of date gave up."""
    return replaced(grpc_connection, "StaleTask", Rejected)


def hang_up_in_submit() -> AbstractContextManager[None]:
    """A client that hung up while its update was journaled had it counted as sent in vain, too."""

    async def interrupted(work: Any) -> Any:
        return await work

    return replaced(uploads, "uninterrupted", interrupted)


def digest_not_compared() -> AbstractContextManager[None]:
    """A client took a version for the right one by its number alone."""
    whole = model_sync.ModelSync.catch_up

    def catch_up(self: Any, version: int, digest: bytes) -> Any:
        held = self._state.held()
        return held if held and held.version == version else whole(self, version, digest)

    return replaced(model_sync.ModelSync, "catch_up", catch_up)


def no_room_for_download() -> AbstractContextManager[None]:
    """A client whose disk had no room for a broken download gave up."""

    def give_up(path: Path, error: OSError, kept: str, loss: str) -> None:
        raise ClientError(f"cannot write {path}: {error.strerror}; make room") from error

    return replaced(partial_download, "warn_unwritable", give_up)


def status_before_message() -> AbstractContextManager[None]:
    """A download that gave way was told so while a message was on its way, and hung."""

    async def end(self: Any, context: Any, refusal: Any, write: Any = None) -> None:
        await context.abort(calls.STATUS_OF_REASON[refusal.reason], str(refusal))

    return replaced(calls.Refuser, "end", end)


def full_server_disk() -> AbstractContextManager[None]:
    """A full disk ended the server's loop."""

    class NeverRaised(Exception):
        pass

    return replaced(loop, "CannotStore", NeverRaised)


def full_client_disk() -> AbstractContextManager[None]:
    """A client whose state could not be written gave up."""

    def save(self: Any, name: str, fields: dict[str, Any], groups: Any) -> None:
        statefile.save(self._file(name), self._content(fields, groups)[0], groups)

    return replaced(StateDirectory, "save", save)


def names_not_synced() -> AbstractContextManager[None]:
    """A client's files were synced, their new names were not."""

    def put_in_place(scratch: Path, path: Path) -> None:
        with scratch.open("r+b") as file:
            files.os.fsync(file.fileno())
        scratch.replace(path)

    return replaced(files, "put_in_place", put_in_place)


def residual_used_twice() -> AbstractContextManager[None]:
    """A client whose update could not be written kept the residual in it on disk as well."""
    return replaced(state.StateDirectory, "keep_in_memory", lambda *_: None)


def wall_clock() -> AbstractContextManager[None]:
    """The server counted its rounds' time by the machine's clock."""

    class WallClock(clock.SteadyClock):
        def __call__(self) -> float:
            return time.time()

    return replaced(server_process, "SteadyClock", WallClock)


BUGS = [
    PlantedBug("stale task", "1215a91", stale_task),
    PlantedBug("hang-up in mid-submit", "1215a91", hang_up_in_submit),
    PlantedBug("digest not compared", "26157e3", digest_not_compared),
    PlantedBug("no room for a download", "ed843da", no_room_for_download),
    PlantedBug("status before the message on its way", "1102fb2", status_before_message),
    PlantedBug("full disk ends the server", "c82427e", full_server_disk),
    PlantedBug("full disk ends a client", "f6551c1", full_client_disk),
    PlantedBug("names not synced", "f6551c1", names_not_synced),
    PlantedBug("residual used twice", "f6551c1", residual_used_twice),
    PlantedBug("rounds by the wall clock", "6ed9826", wall_clock),
]


def find(bug: PlantedBug, most: int = MOST_RUNS, first: int = FIRST_SEED) -> dict[str, Any]:
    """Return how many runs and seconds it takes until a run with the bug breaks something."""
    simulation, begin = Simulation(ROUNDS), time.process_time()
    found: dict[str, Any] = {"bug": bug.name, "mended_by": bug.commit, "found_by_seed": None}
    for number, seed in enumerate(range(first, first + most), 1):
        scenario = simulation.scenario(seed)
        simulation.prepare(scenario)  # without the bug
        with bug.plant():
            result = simulation.run(scenario)
        found |= {"runs": number, "cpu_seconds": round(time.process_time() - begin, 1)}
        if result.violation is not None:
            return {**found, "found_by_seed": seed, "violation": result.violation}
    return found


def main() -> None:
    """Plant the named bugs, or all, and write what came of it beside what is known of others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--most", type=int, default=MOST_RUNS)
    arguments = parser.parse_args()
    chosen = [bug for bug in BUGS if not arguments.names or bug.name in arguments.names]
    for bug in chosen:
        row = find(bug, arguments.most)
        print(json.dumps(row), flush=True)
        known = json.loads(RESULT.read_text("utf-8"))["each"] if RESULT.exists() else []
        rows = [*(other for other in known if other["bug"] != bug.name), row]
        found = sum(each["found_by_seed"] is not None for each in rows)
        figures = {"rounds": ROUNDS, "bugs": len(rows), "found": found, "each": rows}
        RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
