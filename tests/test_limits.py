"""What a server takes from its peers at most: names, rates, calls at a time, refusals."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from support.clients import join_request
from support.coordinator import Clock, Run
from support.federation import Federation
from support.models import TASK
from support.processes import wait_until
from support.raw_calls import EMPTY_MESSAGE, RawCalls, RawConnection

from featherfed.edge_client.credentials import load_credentials
from featherfed.edge_client.errors import Rejected
from featherfed.edge_client.grpc_releases import GrpcReleaseSource
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.access.authority import Authority
from featherfed.server.access.limits import OpenCalls, Peer, Quotas, Rate, network
from featherfed.server.errors import Busy, Refused
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.rpc import calls, parsing
from featherfed.server.rpc.changes import Changes
from featherfed.server.rpc.draining import Draining
from featherfed.server.settings.settings import LimitSettings
from featherfed.server.storage import refusals

Start = Callable[..., Federation]
CODEC = {"uplink": "float32", "downlink": "float32"}
SERVICE = "/featherfed.v1.Federation"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


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


def test_a_call_that_ends_with_its_link_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages may be at their end a moment before it is cancelled."""
    refused: list[str] = []

    class Ended:
        async def read(self) -> Any:
            return grpc.aio.EOF  # type: ignore[attr-defined]

    async def refuse(context: Any, refusal: Refused) -> None:
        refused.append(str(refusal))

    async def read_all(requests: Any, context: Any) -> None:
        async for _ in requests:
            pass

    async def call_of(handler: Any, seconds: float) -> None:
        draining = Draining(Changes(), cast(Any, None))
        interceptor = parsing.ParsingInterceptor("s", cast(Any, refuse), draining, 5.0)
        call = interceptor._reading(handler, ours=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(call(cast(Any, None), cast(Any, Ended())), seconds)

    unary = grpc.unary_unary_rpc_method_handler(cast(Any, read_all))
    stream = grpc.stream_unary_rpc_method_handler(cast(Any, read_all))
    for handler in (unary, stream):
        asyncio.run(call_of(handler, 0.1))
    assert not refused
    monkeypatch.setattr(parsing, "HANG_UP_SECONDS", 0.01)
    for handler in (unary, stream):
        asyncio.run(call_of(handler, 5.0))
    assert refused == ["MALFORMED: a call without a message"] * 2


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


# ---- calls of every method ----


def test_no_number_of_greedy_peers_takes_what_another_needs() -> None:
    calls_ = OpenCalls("calls", 20_000)
    with ExitStack() as held:
        counts = [fill(calls_, held, peer) for peer in range(100)]
        assert counts[0] == 13_125, "two thirds"
        assert counts[-1] == 8
        assert 20_000 - sum(counts) > 1500
        with calls_.hold("another"):
            pass
    assert (calls_.open, calls_._held) == (0, {})


def fill(calls_: OpenCalls, held: ExitStack, key: object) -> int:
    """Open calls until there is no more room for a key; return how many."""
    for count in range(20_000):
        try:
            held.enter_context(calls_.hold(key))
        except Busy:
            return count
    return 20_000


def test_a_proven_name_has_fewer_calls_than_a_network_that_many_may_share() -> None:
    quotas = Quotas(LimitSettings(requests_per_second=100))
    with ExitStack() as held:
        for _ in range(64):
            held.enter_context(quotas.call(Peer("10.0.0.7", proven=True), watch=False))
        with pytest.raises(Busy, match="64 calls of one peer are open"):
            held.enter_context(quotas.call(Peer("10.0.0.7", proven=True), watch=False))
        for _ in range(1000):
            held.enter_context(quotas.call(Peer("10.0.0.7", proven=False), watch=False))
        for _ in range(8):
            held.enter_context(quotas.call(Peer("b", proven=True), watch=True))
        with pytest.raises(Busy, match="8 health checks and reflections of one peer are open"):
            held.enter_context(quotas.call(Peer("b", proven=True), watch=True))
        held.enter_context(quotas.call(Peer("b", proven=True), watch=False))


@pytest.mark.parametrize("certificates", [True, False])
def test_an_enrolled_client_that_opens_calls_of_every_kind_holds_few(
    certificates: bool, federation: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those that never send a message, and those of services that are not ours."""
    authority = Authority(tmp_path / "certs")
    authority.create([])
    authority.enrol(["evil", "good"])
    security = {"credentials": str(authority.folder), "client_certificates": certificates}
    server = federation(rounds=2, clients={"minimum": 1}, security=security)
    evil = RawCalls(server.address, authority.folder / "clients" / "evil")
    silent = {f"{SERVICE}/SubmitUpdate": None, f"{SERVICE}/GetStatus": None}
    for path, message in {WATCH: EMPTY_MESSAGE, REFLECTION: None, **silent}.items():
        evil.open(path, 200, message)
        most = 64 if path in silent else 8
        wait_until(lambda most=most: evil.still_open <= most)
    assert evil.still_open > 0
    good = GrpcTransport(
        server.address, 10, load_credentials(authority.folder / "clients" / "good")
    )
    server.run_clients(server.client("good", transport=good))
    # Without certificates the first quota sees addresses, not names.
    assert {row.client for row in server.store.refusals.all()} - {"(stranger)"} == {"evil"}
    with caplog.at_level(logging.INFO):
        begin = time.monotonic()
        server.close()
        evil.close()
    assert time.monotonic() - begin < 5, "what waits for its peer is let go at once"
    assert not [record for record in caplog.records if record.exc_info], "no traceback"


def test_a_call_whose_first_message_does_not_come_ends(federation: Start) -> None:
    server = federation(rounds=1, limits={"stall_seconds": 0.5})
    silent = RawConnection(server.address)
    methods = pb.DESCRIPTOR.services_by_name["Federation"].methods
    silent.open([f"{SERVICE}/{method.name}" for method in methods])
    silent.open([WATCH, "/grpc.health.v1.Health/Check", REFLECTION])
    wait_until(lambda: silent.ended == silent.opened, 20)
    (row,) = server.store.refusals.all()
    assert (row.client, row.reason, row.count) == ("(stranger)", "TOO_SLOW", silent.opened)
    silent.close()


def test_calls_of_health_and_reflection_end(
    federation: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsing, "WATCH_SECONDS", 0.5)
    server = federation(rounds=1)
    with grpc.insecure_channel(server.address) as channel:
        watch = channel.unary_stream(WATCH)(b"", timeout=20)
        reflection = channel.stream_stream(REFLECTION)(held_open(b"\x3a\x00"), timeout=20)
        assert next(watch) == b"\x08\x01", "serving"
        assert b"featherfed" in next(reflection)
        for call in (watch, reflection):
            with pytest.raises(grpc.RpcError, match="call again") as ended:
                next(call)
            assert cast(Any, ended.value).code() is grpc.StatusCode.UNAVAILABLE


def held_open(message: bytes) -> Any:
    yield message
    time.sleep(5)


def test_garbage_at_health_and_reflection_is_refused_as_elsewhere(
    federation: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = federation(rounds=1)
    with grpc.insecure_channel(server.address) as channel:
        for junk in (b"\xff" * 9, b"\x0a" + b"\xff\x7f" + b"x" * 2**14):
            for call in (
                lambda junk: channel.unary_unary("/grpc.health.v1.Health/Check")(junk),
                lambda junk: next(channel.unary_stream(WATCH)(junk)),
                lambda junk: next(channel.stream_stream(REFLECTION)(iter([junk]))),
            ):
                with pytest.raises(grpc.RpcError, match="MALFORMED"):
                    call(junk)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_method_whose_name_is_no_text_does_not_end_the_server(federation: Start) -> None:
    server = federation(rounds=1)
    odd = RawConnection(server.address)
    names = [b"/\xff\xfe", b"\xff", b"/a\nb\x1b[2J", b"", b"/" + b"x" * 200]
    odd.open([*names, f"{SERVICE}/".encode() + b"\xff"] * 100, EMPTY_MESSAGE)
    wait_until(lambda: odd.ended == odd.opened or odd.closed, 20)
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary(f"{SERVICE}/Nope")(b"", timeout=10)
        assert cast(Any, unknown.value).code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.transport().status().run
    odd.close()


# ---- names ----


def test_devices_beyond_the_limit_are_served_and_counted_together(federation: Start) -> None:
    changes = {
        "rounds": 1, "clients": {"minimum": 1}, "limits": {"devices": 3},
        "server": {"port": 0, "linger": 0, "stay": True},
    }  # fmt: skip
    server = federation(**changes)
    server.run_clients(server.client("a"))
    names = ["known-0", "known-1", *(f"made-up-{number}" for number in range(20))]
    files = {fetch(server, name) for name in names}
    assert len(files) == 1
    assert len(server.coordinator.devices._devices) == 3
    server.close()
    server = federation(**changes)
    assert {fetch(server, name) for name in ["late", "known-1"]} == files
    found = metrics.collect(server.store, server.settings, TASK, server.coordinator.manifest, {})
    counted = {one["device"]: one["downlink"]["payload_bytes"] for one in found["releases"]}
    size = counted["known-0"]
    assert counted == {
        "(others)": 20 * size, "known-0": size, "known-1": size, "made-up-0": size,
    }  # fmt: skip


def test_a_device_that_is_not_counted_apart_resumes_all_the_same(federation: Start) -> None:
    server = federation(
        rounds=1,
        clients={"minimum": 1},
        limits={"devices": 1},
        server={"port": 0, "linger": 0, "stay": True},
    )
    server.run_clients(server.client("a"))
    whole = fetch(server, "known")
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.FederationStub(channel)
        (first,) = stub.FetchRelease(pb.FetchReleaseRequest(device="other"))
        request = pb.FetchReleaseRequest(
            device="other", offset=100, offset_digest=first.release.digest
        )
        (rest,) = stub.FetchRelease(request)
    assert (first.data, rest.offset, rest.data) == (whole, 100, whole[100:])
    down = {
        entry.kind: entry.payload_bytes
        for entry in server.store.ledger.entries()
        if (entry.client, entry.direction) == ("(others)", "downlink")
    }
    assert down == {"release": 2 * len(whole) - 100}


def fetch(server: Federation, device: str) -> bytes:
    source = GrpcReleaseSource(server.address, 10)
    try:
        found = source.fetch_release(pb.FetchReleaseRequest(device=device), 2**20)
    finally:
        source.close()
    assert found is not None
    return found[1]


def test_made_up_names_leave_room_for_the_refusals_of_clients(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MAX_ROWS", 10)
    one = run(Clock())
    one.join("honest")
    for number in range(50):
        name = f"made-up-{number}"
        one.coordinator.refusals.record(name, Refused(pb.DATA_MISMATCH, "other classes"))
    one.coordinator.refusals.record("honest", Refused(pb.LATE, "too late"))
    rows = {row.client: row.count for row in one.store.refusals.all()}
    assert rows == {**{f"made-up-{n}": 1 for n in range(5)}, "(others)": 45, "honest": 1}


def test_refusals_do_not_fill_the_disk(run: Callable[..., Run]) -> None:
    one = run(Clock())
    one.join("a")
    with one.store.transaction():
        for _ in range(1500):
            one.coordinator.refusals.record("a", Refused(pb.MALFORMED, "junk"))
    (row,) = one.store.refusals.all()
    assert row.count == 1500


def test_a_message_that_unpacks_to_far_more_is_refused_unpacked(federation: Start) -> None:
    """gRPC's own check; without it, 64 kB on the link would be 64 MB in memory."""
    server = federation()
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        join = channel.unary_unary("/featherfed.v1.Federation/Join")
        with pytest.raises(grpc.RpcError) as raised:
            join(bytes(2**26), timeout=60)
    error = cast(Any, raised.value)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "Decompressed message larger than max" in error.details()
