"""A kill storm: processes that are killed with SIGKILL at random moments and started again."""

from __future__ import annotations

import random
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.numpy_federation import Spec
from support.processes import program, status

CLIENTS = 5


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Storm:
    """Processes by name, one of them `server`; their output in DIR/NAME.log."""

    def __init__(self, directory: Path, commands: Mapping[str, Sequence[str]]) -> None:
        self.directory = directory
        self.commands = commands
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.kills: Counter[str] = Counter()

    def __enter__(self) -> Storm:
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
        """SIGKILL; a process that has ended by itself before its time is an error."""
        code = self.running[name].poll()
        if code is not None:
            raise RuntimeError(f"{name} ended by itself with {code}:\n{self.log(name)}")
        self.running[name].kill()
        self.running[name].wait()
        self.kills["server" if name == "server" else "clients"] += 1

    def log(self, name: str) -> str:
        """Return the end of what it has said."""
        return (self.directory / f"{name}.log").read_text("utf-8", "replace")[-3000:]

    def rage(
        self,
        kills: int,
        seed: int,
        rounds: int,
        newest: Callable[[], int],
        gap: float,
        server_share: float = 0.3,
    ) -> None:
        """Kill so often, as many in each round but the last, which takes what is left over.

        `gap`: the mean of seconds between kills. Half of the killed are started again at once, the
        others after a pause.
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
        """Wait until all (or those) have ended well; raise RuntimeError with the log of another."""
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
    """What a run left: digests by version, uplink payload by (round, client), other figures."""

    digests: list[str]
    journal: dict[tuple[int, str], int]
    retry_bytes: int
    refusals: int


def outcome(database: Path) -> Outcome:
    """Read what a run left, and check that the journal and the ledger agree."""
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
    """Check what light clients wrote down against what their run left; return how many acks."""
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


def light_spec(uplink: str, rounds: int = 10, clients: int = CLIENTS, **more: Any) -> Spec:
    """Return a run whose rounds are all made by all clients, however long one of them is away."""
    settings = {
        "name": "storm",
        "rounds": rounds,
        "server": {"port": free_port(), "linger": 60},
        "clients": {"minimum": clients, "quorum": 1.0, "deadline": 3600, "patience": 3600},
        "compression": {"uplink": uplink},
    }
    return Spec(settings, **more)


def light_storm(directory: Path, spec: Spec, clients: int = CLIENTS) -> Storm:
    """Return the processes of a light run in a new `directory`."""
    directory.mkdir(parents=True)
    spec.write(directory)
    commands = {"server": program("numpy_federation", "server", str(directory))}
    for number in range(clients):
        commands[f"c{number}"] = program("numpy_federation", "client", str(directory), f"c{number}")
    return Storm(directory, commands)


def newest_of(directory: Path) -> Callable[[], int]:
    """Return a function that asks a light run's server for its newest version."""
    seen = 0

    def newest() -> int:
        nonlocal seen
        address = directory / "server.address"
        if address.exists():
            seen = max(seen, status(address.read_text("utf-8")).version)
        return seen

    return newest
