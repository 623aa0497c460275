"""Servers that end and start again, clients that wait for them, and signals to both."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.clients import join_request
from support.federation import Federation
from support.processes import wait_until
from support.updates import update

from featherfed.edge_client.errors import Unreachable
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.retry import wait_before_retry
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc

Start = Callable[..., Federation]
CODEC = {"uplink": "float32", "downlink": "float32"}


# ---- servers that go and come ----


def test_a_server_that_shuts_down_says_so_and_finishes_open_uploads(federation: Start) -> None:
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
    assert len(list(server.store.journal.updates(1))) == 1


def test_a_client_keeps_its_session_over_a_restart_of_the_server(
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
    wait_until(lambda: "early" in first.coordinator.presence.present())
    port = int(first.address.rpartition(":")[2])
    first.close()
    again = federation(rounds=2, clients={"minimum": 2}, server={"port": port, "linger": 5})
    again.run_clients(again.client("other"))
    thread.join(30)
    assert not thread.is_alive()
    assert joins == ["early", "other"]
    assert again.store.versions.newest().version == 2


def test_another_run_at_the_same_address_is_joined_cleanly(federation: Start) -> None:
    first = federation("first", rounds=3, clients={"minimum": 2})
    client = first.client("early", transport=GrpcTransport(first.address, give_up_after=30))
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(first.run_clients(client)))
    thread.start()
    wait_until(lambda: "early" in first.coordinator.presence.present())
    port = int(first.address.rpartition(":")[2])
    first.close()
    second = federation(
        "second", rounds=1, clients={"minimum": 1}, server={"port": port, "linger": 5}
    )
    thread.join(30)
    assert [held.digest for held in results] == [second.store.versions.newest().digest]


def attempt(number: int, error: Exception) -> Any:
    outcome = SimpleNamespace(exception=lambda: error)
    return SimpleNamespace(attempt_number=number, outcome=outcome)


@pytest.mark.parametrize("outage", [0.0, 2.0, 10.0, 60.0])
def test_retries_of_a_thousand_clients_are_spread_over_time(outage: float) -> None:
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


def test_the_time_to_give_up_begins_when_the_server_stops_answering(
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


# ---- signals ----

SAYS = """
import hashlib, logging
from featherfed.api.signals import end_on_sigterm
logging.basicConfig()
end_on_sigterm("nothing is lost")
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"a step of training", b"", 10**9)
"""

STOPS = """
import asyncio, logging, time
from featherfed.api.signals import stop_on_signal
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
