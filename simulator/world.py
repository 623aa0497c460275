"""One simulated run: its processes, what happens to them, and what must hold all the time."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from featherfed.api.backup import copy_database
from featherfed.edge_client.errors import ClientError, Rejected, Unreachable
from featherfed.edge_client.state import HeldModel
from featherfed.proto import federation_pb2 as pb
from featherfed.server.storage.store import Store
from featherfed.simulator.channel import SimulatedChannel
from featherfed.simulator.client_process import ClientProcess
from featherfed.simulator.database import ServerDisk, simulated_database
from featherfed.simulator.disturbances import Disturbances
from featherfed.simulator.faults import SERVER
from featherfed.simulator.files import ClientDisk, simulated_files
from featherfed.simulator.invariants import (
    Acknowledgements,
    Residuals,
    Sums,
    Versions,
    Violation,
    check_digests,
    check_ledger,
    check_scores,
    check_start,
    check_store,
    ledger_sums,
)
from featherfed.simulator.network import Call, Network
from featherfed.simulator.patrol import Patrol
from featherfed.simulator.scenario import Member, Scenario
from featherfed.simulator.scheduler import START, Process, Scheduler
from featherfed.simulator.seams import simulated_surroundings
from featherfed.simulator.server_process import ServerProcess

RECOVERY_SECONDS = 600.0
"""Simulated seconds after the last fault within which a run must end."""
MAX_STEPS = 2_000_000
"""Events after which a run is taken to turn in circles."""
CONTROL_SECONDS = 1.5
"""How long control bytes may wait in memory: a second, and the time that writing them takes."""
EVICTED = "session lost twice"


@dataclass
class Result:
    """What came of a run."""

    seed: int
    violation: str | None
    trace: str
    """Digest of all that happened."""
    steps: int
    simulated_seconds: float
    recovery_seconds: float
    """Simulated seconds from the end of the last fault to the end of the run."""
    happened: Counter[str] = field(default_factory=Counter)
    """How often each fault took place, and what the clients met."""
    digests: list[bytes] = field(default_factory=list)


class World:
    """Runs a scenario; everything follows from it."""

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        wanted: list[bytes] | None = None,
        on_trace: Callable[[str], None] | None = None,
    ) -> None:
        """`wanted`: the undisturbed run's digests, if this run must have the same."""
        self.scenario = scenario
        self.scheduler = Scheduler(on_trace)
        self.network = Network(self.scheduler, self._draw("network"), scenario.chunk)
        self.server_disk = ServerDisk(folder / SERVER, self._draw("server disk"))
        self.happened: Counter[str] = Counter()
        self.violation: str | None = None
        self.server: ServerProcess | None = None
        self.clients: dict[str, ClientProcess] = {}
        self._disks = {
            member.name: ClientDisk(folder / member.name, self._draw(f"disk of {member.name}"))
            for member in scenario.members
        }
        self._folder = folder
        self._wanted = wanted
        self._lives = 0
        self._finals: dict[str, HeldModel] = {}
        self._versions = Versions()
        self._acknowledged = Acknowledgements()
        self._residuals = Residuals()
        self._base: tuple[int, Sums] = 0, {}
        self._lost_since: dict[int, float] = {}
        self._digests: list[bytes] = []
        self._over = False
        self.disturbances = Disturbances(self)
        self._patrol = Patrol(self)

    def _draw(self, what: str) -> random.Random:
        return random.Random(f"{self.scenario.seed}: {what}")

    # ---- the run

    def run(self) -> Result:
        """Run to the end, or to the first violation."""
        scenario = self.scenario
        with ExitStack() as stack:
            stack.enter_context(
                simulated_surroundings(
                    self.scheduler,
                    scenario.seed,
                    scenario.chunk,
                    self._make_server,
                    self._make_channel,
                )
            )
            stack.enter_context(simulated_files(self.scheduler))
            stack.enter_context(simulated_database(self.scheduler, self.server_disk))
            try:
                self._run()
            except Violation as violation:
                self.violate(str(violation))
            except Exception as error:
                logging.getLogger(__name__).debug("a bug", exc_info=True)
                self.violate(f"{type(error).__name__}: {error}")
            finally:
                self._end()
        return Result(
            scenario.seed, self.violation, self.scheduler.digest, self.scheduler.steps,
            self.scheduler.now - START, self.scheduler.now - self.disturbances.last,
            self.happened, self._digests,
        )  # fmt: skip

    def _run(self) -> None:
        self.start_server()
        for member in self.scenario.members:
            self.start_client(member)
        self.disturbances.arm()
        self._patrol.begin()
        scheduler = self.scheduler
        while not self._over and self.violation is None:
            if not scheduler.step():
                raise Violation("nothing happens any more, and the run has not ended")
            if scheduler.now > self.disturbances.last + RECOVERY_SECONDS:
                raise Violation(
                    f"the run did not end within {RECOVERY_SECONDS:.0f} s after the last fault"
                )
            if scheduler.steps > MAX_STEPS:
                raise Violation(f"the run did not end within {MAX_STEPS} events")

    def violate(self, what: str) -> None:
        """Record that something does not hold; the first such text counts."""
        if self.violation is None:
            self.scheduler.trace("VIOLATION", what)
            self.violation = what

    def _end(self) -> None:
        self.scheduler.current = None
        processes: list[Process | None] = [self.server, *self.clients.values()]
        for process in processes:
            if process is not None and process.alive:
                process.alive = False
                process.remove()

    # ---- processes

    def start_server(self) -> None:
        """Start the server, for the first time or again."""
        self._lives += 1
        server = ServerProcess(
            self.scheduler, self._lives, self.network, self.server_disk,
            self._draw(f"server {self._lives}"), self.violate,
        )  # fmt: skip
        server.on_point = partial(self.disturbances.reach, server)
        server.wall_offset = self.disturbances.wall_offset(SERVER)
        self.server = server
        server.on_death.append(lambda: self._server_died(server))
        self.scheduler.trace("start", SERVER)
        server.start(
            self.scenario.settings(), lambda: self._opened(server), lambda: self._round(server),
            lambda: self._server_ended(server),
        )  # fmt: skip

    def _server_died(self, server: ServerProcess) -> None:
        self._lost_since[server.number] = self._written_until(self.scheduler.now)
        self.network.server_died(self.disturbances.noticed_after)
        if not self._over:
            self.scheduler.after(self.disturbances.restart_after, None, self.start_server)

    def _written_until(self, now: float) -> float:
        """Return up to when all control bytes are on disk for certain."""
        return min(now, self.disturbances.server_behind_since) - CONTROL_SECONDS

    def _server_ended(self, server: ServerProcess) -> None:
        if self.everyone_has_finished and server.finished:
            self._must(lambda: self._check_end(server))
            self._over = True
        else:
            self._lost_since[server.number] = self._written_until(math.inf)
            server.on_death.clear()
            server.alive = False
            self.network.server_died(0.0)
            self.scheduler.after(self.disturbances.restart_after, None, self.start_server)

    def start_client(self, member: Member) -> None:
        """Start a client, for the first time or again."""
        client = ClientProcess(self.scheduler, member, self._disks[member.name])
        client.on_point = partial(self.disturbances.reach, client)
        client.wall_offset = self.disturbances.wall_offset(member.name)
        self.clients[member.name] = client
        client.on_death.append(lambda: self._client_died(client, member))
        self.scheduler.trace("start", member.name)
        client.start(self, lambda end: self._client_ended(client, member, end))

    def _client_died(self, client: ClientProcess, member: Member) -> None:
        self.disturbances.leave_disk(client)
        if not self._over and not client.ended:
            self.scheduler.after(self.disturbances.restart_after, None, self.start_client, member)

    def _client_ended(
        self, client: ClientProcess, member: Member, end: HeldModel | Exception
    ) -> None:
        self.scheduler.trace("ended", member.name, type(end).__name__)
        if isinstance(end, HeldModel):
            if self._versions.forgot(end.version, end.digest):
                self._start_again(member)
                return
            self._finals[member.name] = end
            if self.everyone_has_finished and self.server is not None:
                self.server.stop.set()
            return
        self.happened[f"client: {type(end).__name__}"] += 1
        refused = isinstance(end, Rejected)
        expected = isinstance(end, Unreachable) or (refused and str(end).startswith(EVICTED))
        # Trained for a round that a restored server has opened anew, with another codec.
        expected = expected or bool(refused and self._base[0] and "update refused" in str(end))
        if isinstance(end, ClientError) and "cannot use state directory" in str(end):
            expected = client.disk.full
        if not expected:
            raise Violation(f"{member.name} gave up: {type(end).__name__}: {end}")
        self._start_again(member)

    def _start_again(self, member: Member) -> None:
        """Start a client that has ended, as its owner would, some seconds later."""
        self.scheduler.after(10, None, self.start_client, member)

    def process(self, name: str) -> Process | None:
        """Return the server's or a client's process, None if it does not live."""
        found: Process | None = self.server
        if name != SERVER:
            client = self.clients.get(name)
            found = None if client is None or client.ended else client
        return found if found is not None and found.alive else None

    def disk_of(self, name: str) -> Any:
        """Return the server's or a client's disk."""
        return self.server_disk if name == SERVER else self._disks[name]

    @property
    def everyone_has_finished(self) -> bool:
        """Whether all clients have ended with the final model."""
        return len(self._finals) == len(self.scenario.members)

    # ---- seams

    def _make_server(self, **options: Any) -> Any:
        assert self.server is not None
        return self.server.make_server(**options)

    def _make_channel(self, address: str, credentials: object) -> SimulatedChannel:
        return SimulatedChannel(self.network, address, self.clients[address])

    # ---- what must hold

    def _must(self, check: Callable[[], None]) -> None:
        """Do a check; a violation ends the run, not the code that happens to run now."""
        try:
            check()
        except Violation as violation:
            self.violate(str(violation))

    def holds(self, client: str, held: HeldModel) -> None:
        """Check a model version that a client keeps."""
        self.scheduler.trace("holds", client, held.version)
        if self._base[0]:
            return  # restored: a client may still keep what the server has forgotten
        self._must(lambda: self._versions.check(client, held.version, held.digest))

    def trains(self, client: str, task: pb.Train, digest: bytes) -> None:
        """Check what a client trains from."""
        self._must(lambda: check_start(client, task, digest))

    def sends(self, client: str, round_: int, residual: bytes | None) -> None:
        """Check the residual in a client's update."""
        self._must(lambda: self._residuals.check(client, round_, residual, self._acknowledged))

    def _opened(self, server: ServerProcess) -> None:
        server.opened = True
        self.network.on_reply = self._replied
        self._patrol.follow(server)
        if self.everyone_has_finished:
            server.stop.set()
        self._round(server)

    def _replied(self, call: Call, message: bytes) -> None:
        if call.method.endswith("/SubmitUpdate") and self.server is not None:
            store = self.server.store
            self._must(lambda: self._acknowledged.check_reply(call.record, message, store))

    def _round(self, server: ServerProcess) -> None:
        self._must(lambda: self._check_versions(server.store))
        self._must(lambda: self._acknowledged.check_journal(server.store))
        self.scheduler.trace("version", server.store.versions.newest().digest.hex())

    def _check_versions(self, store: Store) -> None:
        for version in store.versions.all():
            self._versions.check(SERVER, version.version, version.digest)

    def _check_end(self, server: ServerProcess) -> None:
        """Check the whole run once everybody has finished."""
        with self.reading() as store:
            self._check_versions(store)
            self._acknowledged.check_journal(store)
            self._digests = [version.digest for version in store.versions.all()]
            for name, held in self._finals.items():
                self._versions.check(name, held.version, held.digest)
                if held.version != self.scenario.rounds:
                    raise Violation(f"{name} ended with version {held.version}")
            check_store(store)
            if self.scenario.evaluates:
                check_scores(store)
            life, base = self._base
            records = [record for record in self.network.records if record.server > life]
            check_ledger(store, records, base, self._lost_since)
            if self._wanted is not None:
                check_digests(store, self._wanted)
        if server.grpc is not None and server.grpc.open_calls:
            raise Violation(f"{server.grpc.open_calls} calls are open after the end")

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """Open the server's database, while no server does."""
        before, self.scheduler.current = self.scheduler.current, None
        store = Store(self.server_disk.path)
        try:
            yield store
        finally:
            store.close()
            self.scheduler.current = before

    # ---- backups

    def back_up(self) -> Path:
        """Copy the run's database, while it is used or not."""
        copy = self._folder / f"backup-{len(list(self._folder.iterdir()))}.db"
        copy_database(self.server_disk.path, copy)
        return copy

    def restore(self, copy: Path) -> None:
        """Put the server's database back to a copy; the server does not run."""
        self.server_disk.restore({"": copy.read_bytes()})
        with self.reading() as store:
            self._acknowledged.forget(store)
            self._versions.restored(store)
            self._base = self._lives, ledger_sums(store)
        for member in self.scenario.members:
            end = self._finals.get(member.name)
            if end is not None and self._versions.forgot(end.version, end.digest):
                del self._finals[member.name]
                self._start_again(member)
