"""Time and limits: who is dead, late or too much, clocks that jump, servers that come and go."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from conftest import MANIFEST, SHAPE, Federation, Judge, Pull, profile, settings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import wait_until

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.edge_client import grpc_transport as transport_module
from featherfed.edge_client.errors import Rejected, Unreachable
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.heartbeat import Heartbeat
from featherfed.edge_client.retry import Retry, wait_before_retry
from featherfed.edge_client.session import Session
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.access.limits import Quotas, Rate, network
from featherfed.server.coordinator.admission import DataShape
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import Busy, Refused
from featherfed.server.rounds.clock import LONGEST_STEP, SteadyClock, resume
from featherfed.server.rounds.transitions import Phase, RunState
from featherfed.server.rpc import service
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Limits
from featherfed.server.storage.records import Entry
from featherfed.server.storage.store import Store

Start = Callable[..., Federation]

DAY, HOUR = 86_400.0, 3_600.0
CODEC = {"uplink": "float32", "downlink": "float32"}


# ---- the coordinator alone, with a clock in the test's hand ----


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


class Run:
    """A coordinator without gRPC; `restart` is what a crash of the server makes of it."""

    def __init__(self, directory: Path, clock: Callable[[], float], **changes: object) -> None:
        self.settings = settings(directory, compression=CODEC, **changes)
        self.path = directory / "run.db"
        self.sessions: dict[str, int] = {}
        self.restart(clock)

    def restart(self, clock: Callable[[], float]) -> None:
        if self.sessions:
            self.store._alone.close()  # what a dead process leaves: nothing is written any more
            self.store._db.close()
        self.store = Store(self.path)
        plan = make_plan(self.settings, "{}", MANIFEST)
        shape = DataShape(SHAPE, tuple("abcdefghij"))
        self.coordinator = Coordinator(
            self.settings, self.store, plan, MANIFEST, shape, Judge(), clock, secret=1
        )

    def join(self, *names: str) -> None:
        for name in names:
            self.sessions[name] = self.coordinator.join(join_request(name)).session

    def poll(self, *names: str) -> list[pb.NextTaskReply]:
        return [self.coordinator.next_task(name) for name in names]

    def submit(self, name: str, round_: int = 1) -> None:
        payload = update()
        header = pb.UpdateHeader(
            session=self.sessions[name],
            round=round_,
            version=round_ - 1,
            num_examples=1,
            size=len(payload),
        )
        assert self.coordinator.submit(name, header, payload, len(payload)) == pb.ACCEPTED

    def tick(self) -> RunState:
        return self.coordinator.tick()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def start(clock: Callable[[], float], **changes: object) -> Run:
        made.append(Run(tmp_path, clock, **changes))
        return made[-1]

    yield start
    for one in made:
        one.store.close()


def join_request(name: str) -> pb.JoinRequest:
    session = Session(profile(name), None, None, None)  # type: ignore[arg-type]
    return session._join_request()


def update() -> bytes:
    weights = initial_weights(MANIFEST, 0)
    return encode_update(parse_codec("float32"), MANIFEST, [0.5 * (1 - w) for w in weights]).payload


THREE = {"minimum": 3, "quorum": 0.6, "deadline": 100, "patience": 10}


def opened(run: Run) -> Run:
    run.join(*"abc")
    run.poll(*"abc")
    assert run.tick().phase is Phase.TRAINING
    return run


def test_silent_clients_are_lost_after_three_beats_and_every_call_is_a_voice(
    run: Callable[..., Run],
) -> None:
    clock = Clock()
    one = opened(run(clock, clients={**THREE, "heartbeat": 10}))
    clock.now += 28
    assert one.tick().lost == frozenset()
    one.coordinator.client_of(one.sessions["a"])  # a heartbeat, a fetch, ...
    one.coordinator.hear("b")  # a chunk of an upload
    clock.now += 1.5
    assert one.tick().lost == {"c"}
    assert {c.client: c.state for c in one.coordinator.status().clients}["c"] == "lost"
    one.coordinator.hear("c")
    assert one.tick().lost == frozenset(), "it is back"
    clock.now += 29.5
    assert one.tick().lost == set("abc")
    one.submit("c")
    assert one.tick().lost == set("ab"), "a late return works"


def test_without_heartbeats_nobody_is_cut_off_before_the_deadline(run: Callable[..., Run]) -> None:
    clock = Clock()
    one = opened(run(clock, clients={**THREE, "deadline": 4 * HOUR}))
    clock.now += HOUR
    assert (one.tick().phase, one.tick().lost) == (Phase.TRAINING, frozenset())
    for name in "abc":
        one.submit(name)
    assert one.tick().phase is Phase.AGGREGATING


def test_after_a_restart_nobody_is_dead_before_three_beats(run: Callable[..., Run]) -> None:
    clock = Clock()
    one = opened(run(clock, clients={**THREE, "heartbeat": 10}))
    clock.now += 40
    one.restart(clock)
    assert one.tick().lost == frozenset()
    clock.now += 28
    assert one.tick().lost == frozenset()
    clock.now += 2
    assert one.tick().lost == set("abc")


@pytest.mark.parametrize("jump", [DAY, -HOUR])
def test_a_clock_that_is_set_changes_nothing(run: Callable[..., Run], jump: float) -> None:
    wall, ticks = Clock(), Clock()
    one = opened(run(SteadyClock(wall, ticks), clients={**THREE, "heartbeat": 10}))
    one.submit("a")
    one.submit("b")
    for at in range(50):
        if at == 10:
            wall.now += jump
        ticks.now += 1
        one.coordinator.hear("c")
        assert one.tick().phase is Phase.TRAINING, at
        assert one.coordinator._fresh() >= set("c")
    for _ in range(51):
        ticks.now += 1
        one.coordinator.hear("c")
        one.tick()
    assert one.coordinator.phase is Phase.AGGREGATING, "the deadline is the deadline"


def test_time_in_which_the_server_was_frozen_kills_nobody(run: Callable[..., Run]) -> None:
    ticks = Clock()
    one = opened(run(SteadyClock(time.time, ticks), clients={**THREE, "heartbeat": 10}))
    ticks.now += DAY
    state = one.tick()
    assert (state.phase, state.lost) == (Phase.TRAINING, frozenset())


@pytest.mark.parametrize("jump", [DAY, -HOUR, 20.0])
def test_a_restart_with_another_clock_neither_closes_nor_hangs_a_round(
    run: Callable[..., Run], jump: float
) -> None:
    clock = Clock()
    one = opened(run(clock, clients=THREE))
    one.submit("a")
    one.submit("b")
    clock.now += jump
    one.restart(clock)
    assert one.tick().phase is Phase.TRAINING
    clock.now += 9
    assert one.tick().phase is Phase.TRAINING, "clients get their patience to come back"
    clock.now += 92
    assert one.tick().phase is Phase.AGGREGATING


def test_a_phase_goes_on_after_a_restart() -> None:
    assert resume(50, 60, limit=100, grace=10) == 50
    assert resume(0, DAY, limit=100, grace=10) == DAY - 90
    assert resume(HOUR, 0, limit=100, grace=10) == 0
    assert resume(0, 50, limit=5, grace=10) == 50


def test_a_steady_clock_leaves_out_what_it_could_not_see() -> None:
    wall, ticks = Clock(), Clock()
    clock = SteadyClock(wall, ticks)
    assert clock() == wall.now
    ticks.now += 2
    wall.now -= HOUR
    assert clock() == 1e9 + 2
    ticks.now += HOUR
    assert clock() == 1e9 + 2 + LONGEST_STEP


def test_over_selection_takes_the_first_and_the_others_keep_their_work(
    federation: Start,
) -> None:
    clients = {"minimum": 4, "fraction": 0.5, "over_selection": 1.5, "deadline": 60, "patience": 1}
    server = federation(rounds=2, clients=clients)
    slow = threading.Semaphore(1)  # the first to train in round 1 dawdles
    second = threading.Event()

    def on_train(task: pb.Train) -> None:
        if task.round == 2:
            second.set()
        elif slow.acquire(blocking=False):
            assert second.wait(20), "round 2 did not wait for the late client"

    held = server.run_clients(
        *[server.client(f"c{i}", trainer=Pull(1.0, on_train)) for i in range(4)]
    )
    assert len({h.digest for h in held}) == 1
    assert [len(list(server.store.updates(r))) for r in (1, 2)] == [2, 2]
    reasons = Counter(row["reason"] for row in server.store.refusals())
    assert set(reasons) == {"LATE"}
    assert server.store.load_state().lost == frozenset()


# ---- heartbeats over real links ----

CLIENT = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import Pull, profile
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState
from featherfed.edge_client.grpc_transport import GrpcTransport

def train(task):
    print("training", flush=True)
    time.sleep({seconds} if task.round == 1 else 0)

Session(
    profile("vanishes"),
    GrpcTransport({address!r}, 30),
    lambda plan, manifest, step: Pull(1.0, train),
    lambda run: ClientState(Path({state!r}), run),
).run()
"""


class Link:
    """A TCP relay that can be cut so that nobody is told."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._to = host, int(port)
        self.cut = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with self._server:
            while True:
                here, _ = self._server.accept()
                there = socket.create_connection(self._to)
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if not self.cut.is_set():
                    other.sendall(data)


@pytest.mark.parametrize("how", ["killed", "frozen", "cut"])
def test_a_dead_peer_is_noticed_within_three_beats(federation: Start, how: str) -> None:
    clients = {"minimum": 3, "quorum": 0.6, "deadline": 120, "patience": 1, "heartbeat": 1}
    server = federation(rounds=2, clients=clients)
    link = Link(server.address)
    state = server.directory / "vanishes"
    code = CLIENT.format(
        tests=str(Path(__file__).parent), seconds=300, address=link.address, state=str(state)
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None
        honest = [server.client(name, trainer=Pull(1.0)) for name in ("a", "b")]
        thread = threading.Thread(target=server.run_clients, args=honest)
        thread.start()
        assert client.stdout.readline() == "training\n"
        wait_until(lambda: len(list(server.store.updates(1))) == 2)
        time.sleep(4)
        assert server.coordinator.phase is Phase.TRAINING, "alive, it is waited for"
        began = time.monotonic()
        if how == "cut":
            link.cut.set()
        else:
            client.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        wait_until(lambda: server.coordinator.phase is not Phase.TRAINING, 20)
        seconds = time.monotonic() - began
        print(f"{how}: noticed after {seconds:.2f} s, of beats of 1 s")
        assert 0.9 < seconds < 4, "three beats, and what a busy machine adds"
        assert "vanishes" in server.coordinator._state.lost
        thread.join(30)
        assert not thread.is_alive(), "the others go on and finish"
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()


def test_a_frozen_client_comes_back(federation: Start) -> None:
    clients = {"minimum": 2, "quorum": 0.5, "deadline": 120, "patience": 1, "heartbeat": 1}
    server = federation(rounds=2, clients=clients)
    back = threading.Event()

    def slow(task: pb.Train) -> None:
        if task.round == 2:
            assert back.wait(30)

    state = server.directory / "vanishes"
    code = CLIENT.format(
        tests=str(Path(__file__).parent), seconds=2, address=server.address, state=str(state)
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None
        honest = server.client("a", trainer=Pull(1.0, slow))
        thread = threading.Thread(target=server.run_clients, args=(honest,))
        thread.start()
        assert client.stdout.readline() == "training\n"
        client.send_signal(signal.SIGSTOP)
        wait_until(lambda: server.coordinator._state.round == 2, 20)
        client.send_signal(signal.SIGCONT)
        wait_until(lambda: "vanishes" not in server.coordinator._state.lost, 20)
        back.set()
        thread.join(30)
        assert client.wait(30) == 0
        assert [row["reason"] for row in server.store.refusals()] == ["LATE"]
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()


SCALED = {
    "grpc.keepalive_time_ms": 30,
    "grpc.keepalive_timeout_ms": 30,
    "grpc.http2.min_recv_ping_interval_without_data_ms": 30,
}
"""Both sides' times, divided by so much: half a minute is a second."""


@pytest.mark.parametrize("heartbeat", [0, 1])
def test_training_longer_than_all_timeouts_is_not_cut_off(
    federation: Start, monkeypatch: pytest.MonkeyPatch, heartbeat: int
) -> None:
    for module in (service, transport_module):
        scaled = [(key, value // SCALED.get(key, 1)) for key, value in module._OPTIONS]
        monkeypatch.setattr(module, "_OPTIONS", scaled)
    monkeypatch.setattr(service, "MAX_WAIT_SECONDS", 3)
    retries = []
    monkeypatch.setattr(Retry, "_log_first_failure", lambda self, state: retries.append(state))
    clients = {"minimum": 2, "quorum": 1.0, "deadline": 60, "patience": 1, "heartbeat": heartbeat}
    server = federation(rounds=2, clients=clients)
    beats = []
    beat = GrpcTransport.heartbeat

    def spy(self: GrpcTransport, session: int, timeout: float) -> None:
        beat(self, session, timeout)
        beats.append(session)

    monkeypatch.setattr(GrpcTransport, "heartbeat", spy)
    long = Pull(1.0, lambda task: time.sleep(9 if task.round == 1 else 0))
    held = server.run_clients(server.client("long", trainer=long), server.client("quick"))
    assert len({h.digest for h in held}) == 1
    assert not retries, "no connection was closed for too many pings, or for silence"
    assert (len(beats) >= 6) if heartbeat else not beats
    assert list(server.store.refusals()) == []


def test_a_heart_stops_with_its_block_and_with_its_thread() -> None:
    beats: list[float] = []
    with Heartbeat(beats.append, 0.05):
        wait_until(lambda: len(beats) > 3)
    count = len(beats)
    time.sleep(0.2)
    assert len(beats) <= count + 1
    dead = threading.Thread(target=lambda: Heartbeat(beats.append, 0.05).__enter__())  # dies in it
    dead.start()
    dead.join()
    count = len(beats)
    time.sleep(0.2)
    assert len(beats) <= count + 1, "nobody is kept alive who is not"


def test_a_failing_heartbeat_disturbs_nobody() -> None:
    tries = []

    def fail(timeout: float) -> None:
        tries.append(timeout)
        raise Unreachable("gone")

    with Heartbeat(fail, 0.02):
        wait_until(lambda: len(tries) > 3)


def test_without_heartbeats_the_plan_has_not_one_byte_more(tmp_path: Path) -> None:
    plain = make_plan(settings(tmp_path), "{}", MANIFEST)
    asked = make_plan(settings(tmp_path, clients={"heartbeat": 10}), "{}", MANIFEST)
    assert asked.heartbeat_seconds == 10
    assert plain.ByteSize() == asked.ByteSize() - 2
    before = threading.active_count()
    with Heartbeat(lambda timeout: None, 0):
        assert threading.active_count() == before


# ---- servers that go and come ----


def test_a_server_that_goes_down_says_so_and_sees_uploads_through(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 2, "quorum": 0.5}, compression=CODEC)
    slow, waiting = (server.transport().join(join_request(name)).session for name in ("s", "w"))
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.FederationStub(channel)
        poll = stub.NextTask.future(pb.NextTaskRequest(session=waiting, wait_seconds=20))
        while not stub.NextTask(pb.NextTaskRequest(session=slow, wait_seconds=5)).HasField("train"):
            pass
        assert poll.result().HasField("train")
        payload = update()
        header = pb.UpdateHeader(session=slow, round=1, num_examples=1, size=len(payload))
        rest = threading.Event()

        def chunks() -> Iterator[pb.UpdateChunk]:
            yield pb.UpdateChunk(header=header, data=payload[:1000])
            assert rest.wait(10)
            yield pb.UpdateChunk(data=payload[1000:])

        upload = stub.SubmitUpdate.future(chunks())
        third = server.transport().join(join_request("third")).session
        open_poll = stub.NextTask.future(pb.NextTaskRequest(session=third, wait_seconds=20))
        time.sleep(0.5)
        began = time.monotonic()
        server._loop.call_soon_threadsafe(server._stop.set)
        for call in (open_poll, stub.GetStatus.future(pb.StatusRequest())):
            with pytest.raises(grpc.RpcError, match="the server is going down, try again") as gone:
                call.result()
            assert cast(Any, gone.value).code() is grpc.StatusCode.UNAVAILABLE
        check = health_pb2.HealthCheckRequest(service="featherfed.v1.Federation")
        answer = health_pb2_grpc.HealthStub(channel).Check(check)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - began < 3, "waiting calls are let go at once"
        rest.set()
        assert upload.result().outcome == pb.ACCEPTED
    server.join()
    assert time.monotonic() - began < 10
    assert len(list(server.store.updates(1))) == 1


def test_a_client_waits_for_a_server_that_forgot_nothing(
    federation: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = federation(rounds=2, clients={"minimum": 2})
    joins = []
    join = GrpcTransport.join

    def spy(self: GrpcTransport, request: pb.JoinRequest) -> pb.JoinReply:
        joins.append(request.client)
        return join(self, request)

    monkeypatch.setattr(GrpcTransport, "join", spy)
    early = first.client("early", transport=GrpcTransport(first.address, give_up_after=30))
    thread = threading.Thread(target=first.run_clients, args=(early,))
    thread.start()
    wait_until(lambda: "early" in first.coordinator._fresh())
    port = int(first.address.rpartition(":")[2])
    first.close()
    again = federation(rounds=2, clients={"minimum": 2}, server={"port": port, "linger": 5})
    again.run_clients(again.client("other"))
    thread.join(30)
    assert not thread.is_alive()
    assert joins == ["early", "other"]
    assert again.store.newest().version == 2


def test_another_run_at_the_same_address_is_joined_cleanly(federation: Start) -> None:
    first = federation("first", rounds=3, clients={"minimum": 2})
    client = first.client("early", transport=GrpcTransport(first.address, give_up_after=30))
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(first.run_clients(client)))
    thread.start()
    wait_until(lambda: "early" in first.coordinator._fresh())
    port = int(first.address.rpartition(":")[2])
    first.close()
    second = federation(
        "second", rounds=1, clients={"minimum": 1}, server={"port": port, "linger": 5}
    )
    thread.join(30)
    assert [held.digest for held in results] == [second.store.newest().digest]


def attempt(number: int, error: Exception) -> Any:
    outcome = SimpleNamespace(exception=lambda: error)
    return SimpleNamespace(attempt_number=number, outcome=outcome)


@pytest.mark.parametrize("outage", [0.0, 2.0, 10.0, 60.0])
def test_a_thousand_clients_do_not_come_back_in_one_instant(outage: float) -> None:
    """Each starts to try when its poll breaks, and has its next try after the server is back."""
    error = Unreachable("gone")
    back = []
    for _ in range(1000):
        at, number = 0.0, 1
        while True:
            at += wait_before_retry(attempt(number, error))
            number += 1
            if at >= outage:
                break
        back.append(at)
    busiest = Counter(int(10 * at) for at in back).most_common(1)[0][1]
    print(f"after {outage:g} s: at most {busiest} of 1000 in a tenth of a second")
    assert busiest < 150


def test_a_busy_server_says_how_long_to_wait() -> None:
    error = Unreachable("busy")
    error.retry_after = 7.0
    waits = [wait_before_retry(attempt(1, error)) for _ in range(100)]
    assert 7 <= min(waits) < max(waits) <= 8


def test_patience_with_a_server_begins_when_it_falls_silent(
    federation: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll that breaks after it has waited for longer than that is tried again."""
    server = federation(rounds=1, clients={"minimum": 2})
    transport = GrpcTransport(server.address, give_up_after=1)
    session = transport.join(join_request("a")).session
    calls = []

    class Stub:
        def NextTask(self, request: Any, timeout: float) -> pb.NextTaskReply:
            calls.append(time.monotonic())
            if len(calls) == 1:
                time.sleep(1.5)
                raise Lost
            return pb.NextTaskReply(wait=pb.Wait())

    class Lost(grpc.RpcError):  # type: ignore[misc]
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return "lost"

        def trailing_metadata(self) -> None:
            return None

    transport._stub = Stub()  # type: ignore[assignment]
    monkeypatch.setattr(Lost, "__call__", lambda self: self, raising=False)
    assert transport.next_task(session).HasField("wait")
    assert len(calls) == 2


# ---- limits ----


def test_a_run_has_room_for_so_many_names_and_known_ones_come_back(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 3}, limits={"clients": 2})
    transport = server.transport()
    for name in ("a", "b", "a"):
        transport.join(join_request(name))
    with pytest.raises(Rejected, match="TOO_MANY_CLIENTS: the run has 2 clients"):
        transport.join(join_request("c"))
    assert [row["reason"] for row in server.store.refusals()] == ["TOO_MANY_CLIENTS"]
    assert transport.join(join_request("b")).session


def test_a_rate_allows_bursts_and_says_how_long_to_wait() -> None:
    clock = Clock()
    rate = Rate(20, clock=clock)
    for _ in range(100):
        rate.check("a")
    with pytest.raises(Busy, match=r"more than 20 requests a second; try again in 0\.1 s") as busy:
        rate.check("a")
    rate.check("b")
    clock.now += busy.value.wait
    rate.check("a")
    clock.now += 10
    for _ in range(100):
        rate.check("a")
    with pytest.raises(Busy):
        rate.check("a")
    slow = Rate(0.01, clock=clock)
    slow.check("a")
    with pytest.raises(Busy, match="try again in 100"):
        slow.check("a")


def test_a_rates_memory_is_bounded() -> None:
    rate = Rate(1, keys=100)
    for at in range(10_000):
        rate.check(str(at))
    assert len(rate._paid) == 100


def test_who_has_no_session_is_limited_by_its_network_and_in_all() -> None:
    assert network("ipv4:10.0.0.7:5000") == "10.0.0.7"
    assert network("ipv6:%5B2001:db8::1%5D:5000") == "2001:db8::/64"
    assert network("ipv6:%5Bfe80::1%25eth0%5D:5000") == "fe80::/64"
    assert network("unix:") == "unix"
    gate = Quotas(Limits(requests_per_second=1))
    for _ in range(50):
        gate.stranger("a")
    with pytest.raises(Busy):
        gate.stranger("a")
    for _ in range(50):
        gate.stranger("b")
    with pytest.raises(Busy):
        gate.stranger("c")
    for _ in range(5):
        gate.client("known")
    with pytest.raises(Busy):
        gate.client("known")


def test_polls_of_one_client_are_limited() -> None:
    gate = Quotas(Limits())
    for _ in range(8):
        gate.begin_poll("a")
    with pytest.raises(Busy, match="8 polls of one client are open"):
        gate.begin_poll("a")
    gate.begin_poll("b")
    gate.end_poll("a")
    gate.begin_poll("a")


def test_a_client_of_a_busy_server_waits_and_goes_on(federation: Start) -> None:
    server = federation(
        rounds=2, clients={"minimum": 1}, limits={"requests_per_second": 1}, compression=CODEC
    )
    session = server.transport().join(join_request("a")).session
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.FederationStub(channel)
        request = pb.NextTaskRequest(session=session)
        polls = [stub.NextTask.future(request, timeout=5) for _ in range(8)]
        with pytest.raises(grpc.RpcError) as busy:
            [poll.result() for poll in polls]
        error = cast(Any, busy.value)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 0 < float(dict(error.trailing_metadata())[service.RETRY_AFTER]) <= 5
    (held,) = server.run_clients(server.client("a"))
    assert held.version == 2
    assert {row["reason"] for row in server.store.refusals()} == {"BUSY"}


def test_a_client_that_joins_a_thousand_times_disturbs_nobody(
    federation: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = federation(rounds=2, clients={"minimum": 2, "deadline": 60})
    outcomes: Counter[str] = Counter()
    last = 0
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.FederationStub(channel)
        honest = threading.Thread(target=server.run_clients, args=(server.client("honest"),))
        honest.start()
        for _ in range(1000):
            try:
                last = stub.Join(join_request("storm"), timeout=20).session
                outcomes["joined"] += 1
            except grpc.RpcError as error:
                outcomes[cast(Any, error).code().name] += 1
        print(dict(outcomes))
        assert set(outcomes) <= {"joined", "RESOURCE_EXHAUSTED"}
        assert outcomes["joined"] >= 100
        reply = stub.NextTask(pb.NextTaskRequest(session=last, wait_seconds=5), timeout=20)
        assert reply.HasField("train"), "its last session works"
        for session in (last - 1, 0):
            with pytest.raises(grpc.RpcError, match="join first"):
                stub.NextTask(pb.NextTaskRequest(session=session), timeout=5)
    server.run_clients(server.client("storm"))
    honest.join(30)
    assert not honest.is_alive()
    assert len([e for e in server.store.ledger() if e.client == "storm"]) <= 12
    assert len(caplog.records) < 100


def test_more_calls_than_streams_are_turned_away(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 2}, limits={"streams": 3})
    transport = server.transport()
    session = transport.join(join_request("a")).session
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.FederationStub(channel)
        request = pb.NextTaskRequest(session=session, wait_seconds=2)
        polls = [stub.NextTask.future(request) for _ in range(6)]
        codes = Counter(poll.code().name for poll in polls)
    assert codes == {"OK": 3, "RESOURCE_EXHAUSTED": 3}
    assert transport.status().run, "and then there is room again"


def test_refusals_do_not_fill_the_disk(run: Callable[..., Run]) -> None:
    one = run(Clock())
    one.join("a")
    with one.store.transaction():
        for _ in range(1500):
            one.coordinator.record_refusal("a", Refused(pb.MALFORMED, "junk"))
    (row,) = one.store.refusals()
    assert row["count"] == 1500


# ---- what it costs ----


def test_polls_do_not_wait_for_the_disk_and_no_byte_is_forgotten(run: Callable[..., Run]) -> None:
    one = opened(run(Clock(), clients=THREE))
    statements: list[str] = []
    one.store._db.set_trace_callback(statements.append)
    for _ in range(100):
        one.poll("a")
        one.store.count(
            Entry(1, "a", "uplink", "control", 0, 16), Entry(1, "a", "downlink", "control", 0, 10)
        )
    assert statements == []
    assert one.coordinator.status().uplink_bytes == 1600
    one.store._db.set_trace_callback(None)
    other = sqlite3.connect(one.path)
    assert other.execute("SELECT COUNT(*) FROM ledger").fetchone()[0] == 0
    one.submit("a")
    assert other.execute("SELECT message_bytes FROM ledger WHERE kind = 'control'").fetchall() == [
        (1600,), (1000,),
    ]  # fmt: skip
    other.close()
    assert one.coordinator.status().downlink_bytes == 1000


def test_a_failed_transaction_forgets_no_bytes(run: Callable[..., Run]) -> None:
    one = run(Clock())
    one.store.count(Entry(1, "a", "uplink", "control", 0, 7))
    with pytest.raises(RuntimeError), one.store.transaction():
        raise RuntimeError
    one.store.count(Entry(1, "a", "uplink", "control", 0, 1))
    assert [e.message_bytes for e in one.store.ledger()] == [8]


def test_counted_bytes_are_written_within_a_second_or_so(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 2})
    server.transport().join(join_request("a"))
    other = sqlite3.connect(server.directory / "run.db")
    sql = "SELECT COUNT(*) FROM ledger"
    wait_until(lambda: other.execute(sql).fetchone()[0] == 2, 10)
    other.close()


def test_an_update_does_not_rewrite_the_state(run: Callable[..., Run]) -> None:
    """The journal knows who has reported: a round of n clients writes O(n), not O(n^2)."""
    names = [f"c{i}" for i in range(30)]
    clock = Clock()
    one = run(clock, clients={"minimum": 30})
    one.join(*names)
    one.poll(*names)
    one.tick()
    written: list[str] = []
    one.store._db.set_trace_callback(
        lambda sql: written.append(sql) if sql.startswith("UPDATE run") else None
    )
    for name in names[:-1]:
        one.submit(name)
    assert written == []
    one.store._db.set_trace_callback(None)
    one.restart(clock)
    assert one.coordinator._state.reported == set(names[:-1])
    one.submit(names[-1])
    assert one.tick().phase is Phase.AGGREGATING


def test_a_state_of_before_over_selection_is_read(run: Callable[..., Run]) -> None:
    clock = Clock()
    one = opened(run(clock, clients=THREE))
    one.submit("a")
    old = (
        '{"phase": "training", "round": 1, "since": 1e9, "cohort": ["a", "b", "c"], "slots": 3, '
        '"reported": ["a"], "required": 2, "lost": []}'
    )
    one.store._run("UPDATE run SET state = ?", old)
    one.restart(clock)
    for name in "bc":
        assert one.tick().phase is Phase.TRAINING
        one.submit(name)
    assert one.tick().phase is Phase.AGGREGATING


# ---- signals ----

SAYS = """
import hashlib, logging
from featherfed.cli.signals import end_on_sigterm
logging.basicConfig()
end_on_sigterm("nothing is lost")
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"a step of training", b"", 10**9)
"""

STOPS = """
import asyncio, logging, time
from featherfed.cli.signals import stop_on_signal
logging.basicConfig()
async def main():
    stop = asyncio.Event()
    stop_on_signal(stop)
    print("ready", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    time.sleep(60)
asyncio.run(main())
"""


def started(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigterm_ends_a_client_in_the_middle_of_a_step() -> None:
    process = started(SAYS)
    began = time.monotonic()
    process.terminate()
    _, error = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert process.returncode == -signal.SIGTERM, "143 to a shell, a clean end to systemd"
    assert "nothing is lost" in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_server_at_once(number: signal.Signals) -> None:
    process = started(STOPS)
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == -number
    assert "a second signal ends at once" in error
