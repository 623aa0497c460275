"""How long a server waits for clients: deadlines, heartbeats, clocks that jump, over-selection."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.clients import Pull
from support.coordinator import THREE, Clock, Run, opened
from support.federation import Federation, settings
from support.models import MANIFEST, TASK
from support.processes import wait_until

from featherfed.edge_client import grpc_connection
from featherfed.edge_client.errors import Unreachable
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.heartbeat import Heartbeat
from featherfed.edge_client.retry import Retry
from featherfed.proto import federation_pb2 as pb
from featherfed.server.rounds.clock import LONGEST_STEP, SteadyClock, begin_after_restart
from featherfed.server.rounds.transitions import Phase
from featherfed.server.rpc import server as rpc_server
from featherfed.server.rpc import service
from featherfed.server.settings.plan import make_plan

Start = Callable[..., Federation]

DAY, HOUR = 86_400.0, 3_600.0
CODEC = {"uplink": "float32", "downlink": "float32"}


# ---- the coordinator alone, with a clock in the test's hand ----


def test_a_client_is_lost_after_three_heartbeats_without_any_call(
    run: Callable[..., Run],
) -> None:
    clock = Clock()
    one = opened(run(clock, clients={**THREE, "heartbeat": 10}))
    clock.now += 28
    assert one.tick().lost == frozenset()
    one.coordinator.presence.hear("a")  # a heartbeat, a fetch, ...
    one.coordinator.presence.hear("b")  # a chunk of an upload
    clock.now += 1.5
    assert one.tick().lost == {"c"}
    assert one.coordinator.status().client_counts.lost == 1
    one.coordinator.presence.hear("c")
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


def test_after_a_restart_no_client_is_lost_before_three_heartbeats(run: Callable[..., Run]) -> None:
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
def test_setting_the_clock_moves_no_deadline(run: Callable[..., Run], jump: float) -> None:
    wall, ticks = Clock(), Clock()
    one = opened(run(SteadyClock(wall, ticks), clients={**THREE, "heartbeat": 10}))
    one.submit("a")
    one.submit("b")
    for at in range(50):
        if at == 10:
            wall.now += jump
        ticks.now += 1
        one.coordinator.presence.hear("c")
        assert one.tick().phase is Phase.TRAINING, at
        assert one.coordinator.presence.present() >= set("c")
    for _ in range(51):
        ticks.now += 1
        one.coordinator.presence.hear("c")
        one.tick()
    assert one.coordinator.phase is Phase.AGGREGATING, "the deadline is the deadline"


def test_no_client_is_lost_for_time_in_which_the_server_was_frozen(run: Callable[..., Run]) -> None:
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
    assert begin_after_restart(50, 60, limit=100, grace=10) == 50
    assert begin_after_restart(0, DAY, limit=100, grace=10) == DAY - 90
    assert begin_after_restart(HOUR, 0, limit=100, grace=10) == 0
    assert begin_after_restart(0, 50, limit=5, grace=10) == 50


def test_a_steady_clock_moves_by_the_longest_step_at_most() -> None:
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
    server = federation(rounds=2, clients=clients, aggregation={"clip": 0})
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
    assert [len(list(server.store.journal.updates(r))) for r in (1, 2)] == [2, 2]
    reasons = Counter(row.reason for row in server.store.refusals.all())
    assert set(reasons) == {"LATE"}
    assert server.store.load_state().lost == frozenset()


# ---- heartbeats over real links ----

CLIENT = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.clients import Pull, profile
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
    """A TCP relay that, once cut, drops all bytes and keeps the connections open."""

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


@pytest.mark.parametrize("how", ["killed", pytest.param("frozen", marks=pytest.mark.slow), "cut"])
def test_a_dead_peer_is_noticed_within_three_heartbeats(federation: Start, how: str) -> None:
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
        wait_until(lambda: len(list(server.store.journal.updates(1))) == 2)
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
        assert "vanishes" in server.coordinator.run._state.lost
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
        wait_until(lambda: server.coordinator.run._state.round == 2, 20)
        client.send_signal(signal.SIGCONT)
        wait_until(lambda: "vanishes" not in server.coordinator.run._state.lost, 20)
        back.set()
        thread.join(30)
        assert client.wait(30) == 0
        assert [row.reason for row in server.store.refusals.all()] == ["LATE"]
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


@pytest.mark.parametrize("heartbeat", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_longer_than_all_timeouts_is_not_cut_off(
    federation: Start, monkeypatch: pytest.MonkeyPatch, heartbeat: int
) -> None:
    for module, name in ((rpc_server, "OPTIONS"), (grpc_connection, "_OPTIONS")):
        scaled = [(key, value // SCALED.get(key, 1)) for key, value in getattr(module, name)]
        monkeypatch.setattr(module, name, scaled)
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
    assert list(server.store.refusals.all()) == []


def test_heartbeats_stop_with_their_block_and_with_the_thread_that_trains() -> None:
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
    plain = make_plan(settings(tmp_path), TASK, "{}", MANIFEST)
    asked = make_plan(settings(tmp_path, clients={"heartbeat": 10}), TASK, "{}", MANIFEST)
    assert asked.heartbeat_seconds == 10
    assert plain.ByteSize() == asked.ByteSize() - 2
    before = threading.active_count()
    with Heartbeat(lambda timeout: None, 0):
        assert threading.active_count() == before
