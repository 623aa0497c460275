"""What a server takes from its clients at most: names, rates, polls, streams, refusals."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import grpc
import pytest
from support.clients import join_request
from support.coordinator import Clock, Run
from support.federation import Federation

from featherfed.edge_client.errors import Rejected
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.access.limits import Quotas, Rate, network
from featherfed.server.errors import Busy, Refused
from featherfed.server.rpc import calls
from featherfed.server.settings.settings import LimitSettings

Start = Callable[..., Federation]
CODEC = {"uplink": "float32", "downlink": "float32"}


# ---- limits ----


def test_a_full_run_refuses_new_names_and_takes_known_ones(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 3}, limits={"clients": 2})
    transport = server.transport()
    for name in ("a", "b", "a"):
        transport.join(join_request(name))
    with pytest.raises(Rejected, match="TOO_MANY_CLIENTS: the run has 2 clients"):
        transport.join(join_request("c"))
    assert [row.reason for row in server.store.refusals.all()] == ["TOO_MANY_CLIENTS"]
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


def test_callers_without_a_session_are_limited_per_network_and_in_total() -> None:
    assert network("ipv4:10.0.0.7:5000") == "10.0.0.7"
    assert network("ipv6:%5B2001:db8::1%5D:5000") == "2001:db8::/64"
    assert network("ipv6:%5Bfe80::1%25eth0%5D:5000") == "fe80::/64"
    assert network("unix:") == "unix"
    quotas = Quotas(LimitSettings(requests_per_second=1))
    for _ in range(50):
        quotas.count_stranger("a")
    with pytest.raises(Busy):
        quotas.count_stranger("a")
    for _ in range(50):
        quotas.count_stranger("b")
    with pytest.raises(Busy):
        quotas.count_stranger("c")
    for _ in range(5):
        quotas.count_client("known")
    with pytest.raises(Busy):
        quotas.count_client("known")


def test_bytes_that_do_not_parse_count_for_the_rate(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 1}, limits={"requests_per_second": 0.1})
    with grpc.insecure_channel(server.address) as channel:
        beat = channel.unary_unary("/featherfed.v1.Federation/Heartbeat")
        answers = []
        for _ in range(7):
            with pytest.raises(grpc.RpcError) as raised:
                beat(b"\xff")
            answers.append(cast(Any, raised.value).details())
    assert answers[:5] == ["MALFORMED: the request is no message of this method"] * 5
    assert all(answer.startswith("BUSY: more than 1 requests") for answer in answers[5:])
    counts = {(row.client, row.reason): row.count for row in server.store.refusals.all()}
    assert counts == {("(stranger)", "MALFORMED"): 5, ("(stranger)", "BUSY"): 2}


def test_polls_of_one_client_are_limited() -> None:
    quotas = Quotas(LimitSettings())
    with ExitStack() as open_polls:
        for _ in range(8):
            open_polls.enter_context(quotas.poll("a"))
        with pytest.raises(Busy, match="8 polls of one client are open"), quotas.poll("a"):
            pass
        with quotas.poll("b"):
            pass
    with quotas.poll("a"):
        pass


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
        assert 0 < float(dict(error.trailing_metadata())[calls.RETRY_AFTER]) <= 5
    (held,) = server.run_clients(server.client("a"))
    assert held.version == 2
    assert {row.reason for row in server.store.refusals.all()} == {"BUSY"}


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
    assert len([e for e in server.store.ledger.entries() if e.client == "storm"]) <= 12
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
            one.coordinator.refusals.record("a", Refused(pb.MALFORMED, "junk"))
    (row,) = one.store.refusals.all()
    assert row.count == 1500
