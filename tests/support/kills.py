"""Processes that are killed with SIGKILL and started again, and the result of their run."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.numpy_federation import Spec
from support.ports import free_port
from support.processes import program, status

from featherfed.server.storage.postgres_address import PostgresAddress

CLIENTS = 5


class KillableProcesses:
    """Processes by name, one of them `server`; their output in DIR/NAME.log."""

    def __init__(self, directory: Path, commands: Mapping[str, Sequence[str]]) -> None:
        self.directory = directory
        self.commands = commands
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.kills: Counter[str] = Counter()

    def __enter__(self) -> KillableProcesses:
        for name in self.commands:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()

    def start(self, name: str) -> None:
        """Start a process (again)."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.commands[name], stdout=log, stderr=log, cwd=self.directory
            )

    def kill(self, name: str) -> None:
        """Send SIGKILL; raise RuntimeError if the process has already ended by itself."""
        code = self.running[name].poll()
        if code is not None:
            raise RuntimeError(f"{name} ended by itself with {code}:\n{self.log(name)}")
        self.running[name].kill()
        self.running[name].wait()
        self.kills["server" if name == "server" else "clients"] += 1

    def log(self, name: str) -> str:
        """Return the end of a process's output."""
        return (self.directory / f"{name}.log").read_text("utf-8", "replace")[-3000:]

    def kill_at_random(
        self,
        kills: int,
        seed: int,
        rounds: int,
        newest: Callable[[], int],
        gap: float,
        server_share: float = 0.3,
    ) -> None:
        """Kill `kills` processes one after the other, evenly spread over all rounds but the last.

        `gap` is the mean time between kills in seconds. Half of the killed processes are started
        again at once, the others after a pause.
        """
        rng = random.Random(seed)
        clients = [name for name in self.commands if name != "server"]
        for number in range(kills):
            share = kills / (rounds - 1)
            while number >= share * (newest() + 1):
                time.sleep(0.02)
            behind = number < share * newest()
            time.sleep(rng.uniform(0, gap if behind else 2 * gap))
            name = "server" if rng.random() < server_share else rng.choice(clients)
            self.kill(name)
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, gap))
            self.start(name)

    def wait(self, seconds: float, names: Sequence[str] = ()) -> None:
        """Wait until all (or `names`) have ended with 0; else raise RuntimeError with a log."""
        until = time.monotonic() + seconds
        for name in names or self.running:
            try:
                code: object = self.running[name].wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = f"no end after {seconds:.0f} s"
            if code != 0:
                raise RuntimeError(f"{name}: {code}\n{self.log(name)}")


@dataclass(frozen=True)
class Outcome:
    """A run's result: digests by version, uplink bytes by (round, client), bytes sent in vain."""

    digests: list[str]
    journal: dict[tuple[int, str], int]
    retry_bytes: int
    refusals: int


def outcome(database: Path) -> Outcome:
    """Read a run's result from its database; assert that the journal and the ledger agree."""
    with sqlite3.connect(database) as db:
        digests = [
            row[0].hex() for row in db.execute("SELECT digest FROM versions ORDER BY version")
        ]
        journal = set(db.execute("SELECT round, client FROM updates"))
        transfers = {
            (row[0], row[1]): row[2]
            for row in db.execute(
                "SELECT round, client, payload_bytes FROM ledger "
                "WHERE direction = 'uplink' AND kind = 'transfer'"
            )
        }
        (retries,) = db.execute("SELECT sum(message_bytes) FROM ledger WHERE kind = 'retry'")
        (refusals,) = db.execute("SELECT coalesce(sum(count), 0) FROM refused")
    assert journal == set(transfers), "the ledger counts other updates than the journal holds"
    return Outcome(digests, transfers, retries[0] or 0, refusals[0])


def check_acks(directory: Path, left: Outcome) -> int:
    """Compare the clients' acks-* and held-* files with the result; return the number of acks."""
    total = 0
    for path in directory.glob("acks-*"):
        client = path.name.removeprefix("acks-")
        accepted: Counter[int] = Counter()
        for line in path.read_text("utf-8").splitlines():
            round_, outcome_, size = line.split()
            assert outcome_ in ("ACCEPTED", "DUPLICATE"), f"{client}: {line}"
            assert left.journal[int(round_), client] == int(size), f"{client}: {line}"
            accepted[int(round_)] += outcome_ == "ACCEPTED"
            total += 1
        assert all(count <= 1 for count in accepted.values()), f"{client}: {accepted}"
    for path in directory.glob("held-*"):
        assert path.read_text("utf-8") == left.digests[-1], f"{path.name} holds another model"
    return total


def numpy_spec(uplink: str, rounds: int = 10, clients: int = CLIENTS, **more: Any) -> Spec:
    """Return a run in which every round waits for all clients, however long one is away."""
    settings = {
        "name": "storm",
        "rounds": rounds,
        "server": {"port": free_port(), "linger": 60},
        "clients": {"minimum": clients, "quorum": 1.0, "deadline": 3600, "patience": 3600},
        "compression": {"uplink": uplink},
    }
    return Spec(settings, **more)


def numpy_processes(directory: Path, spec: Spec, clients: int = CLIENTS) -> KillableProcesses:
    """Return the server and clients of numpy_federation.py as processes in a new `directory`."""
    directory.mkdir(parents=True)
    spec.write(directory)
    commands = {"server": program("numpy_federation", "server", str(directory))}
    for number in range(clients):
        commands[f"c{number}"] = program("numpy_federation", "client", str(directory), f"c{number}")
    return KillableProcesses(directory, commands)


def outcome_in_postgres(dsn: str, scratch: Path) -> Outcome:
    """Read a run's result from PostgreSQL, by way of a copy in the folder `scratch`."""
    from featherfed.server.storage.postgres_copy import copy_to_sqlite

    scratch.mkdir()
    copy_to_sqlite(PostgresAddress(dsn), scratch / "run.db")
    return outcome(scratch / "run.db")


def newest_version_of(directory: Path) -> Callable[[], int]:
    """Return a function that asks the server of `directory` for its newest version."""
    seen = 0

    def newest() -> int:
        nonlocal seen
        address = directory / "server.address"
        if address.exists():
            seen = max(seen, status(address.read_text("utf-8")).version)
        return seen

    return newest
