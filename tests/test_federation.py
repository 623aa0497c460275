"""End to end over real gRPC on loopback, with a numpy model whose result is known."""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.clients import Pull, profile
from support.evaluator import DistanceEvaluator
from support.federation import Federation
from support.models import CLASSES, MANIFEST, SHAPE, TASK, summary

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.compression.exchange.masks import sparsity_of
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.compression.wire import seal, unseal
from featherfed.edge_client.errors import Rejected, Unreachable
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.edge_client.versions import DigestMismatch, apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import ServerError
from featherfed.server.observability import metrics_json as metrics
from featherfed.server.rpc.calls import STATUS_OF_REASON
from featherfed.server.storage.store import Store
from featherfed.server.transfers.deliveries import Deliveries
from featherfed.server.transfers.framing import framed_size
from featherfed.tasks.task import image_task

Start = Callable[..., Federation]

FLOAT32 = {"uplink": "float32", "downlink": "float32"}
TWO = {"minimum": 2, "quorum": 0.5, "deadline": 1.5, "patience": 1}


@pytest.mark.parametrize("codec", ["float32", "quantize(8) | zstd", "topk(0.1) | quantize(4)"])
def test_all_sides_end_with_the_same_model(federation: Start, codec: str) -> None:
    server = federation(compression={"uplink": codec, "downlink": codec})
    held = server.run_clients(*[server.client(f"c{i}", value=float(i)) for i in range(3)])
    server.join()
    assert server.finished
    final = server.store.versions.all()[-1]
    assert final.version == 3
    assert [h.digest for h in held] == [final.digest] * 3


def test_uneven_clients_are_averaged_by_their_examples(federation: Start) -> None:
    server = federation(rounds=1, compression=FLOAT32)
    counts = {"a": 100, "b": 200, "c": 300}
    values = {"a": 1.0, "b": -2.0, "c": 4.0}
    held = server.run_clients(*[server.client(n, values[n], counts[n]) for n in counts])
    mean = (100 * 1.0 + 200 * -2.0 + 300 * 4.0) / 600
    for start, end in zip(initial_weights(MANIFEST, 0), held[0].weights, strict=True):
        np.testing.assert_allclose(end, 0.5 * start + 0.5 * mean, rtol=0, atol=1e-6)


def test_the_order_of_arrival_does_not_matter(federation: Start) -> None:
    digests, arrivals = [], []
    for order in ("abc", "cab"):
        server = federation(order, rounds=1)
        gates = {name: threading.Event() for name in order}
        gates[order[0]].set()

        def wait_for_turn(name: str, order: str = order, gates: Any = gates) -> Callable[..., None]:
            def wait(task: pb.Train) -> None:
                gates[name].wait(10)
                later = order[order.index(name) + 1 :]
                if later:
                    threading.Timer(0.3, gates[later[0]].set).start()

            return wait

        values = {"a": 0.1, "b": 0.7, "c": -0.3}
        sessions = [
            server.client(n, trainer=Pull(values[n], wait_for_turn(n))) for n in sorted(order)
        ]
        digests.append(server.run_clients(*sessions)[0].digest)
        rows = server.store._database.run("SELECT client FROM updates ORDER BY rowid")
        arrivals.append("".join(row[0] for row in rows))
    assert arrivals == ["abc", "cab"]
    assert digests[0] == digests[1]


def test_pruning_reaches_its_sparsity_in_the_global_model(federation: Start) -> None:
    server = federation(
        rounds=4, optimization={"method": "prune", "final_sparsity": 0.75, "begin_round": 2}
    )
    held = server.run_clients(*[server.client(f"c{i}", value=float(i + 1)) for i in range(3)])
    assert sparsity_of(MANIFEST, held[0].weights) == 0.75
    payloads = [len(v.payload) for v in server.store.versions.all()[1:]]
    assert payloads[-1] < payloads[0] / 2, "what the mask removes is not sent"


def test_a_silent_client_holds_a_round_until_the_deadline_only(federation: Start) -> None:
    server = federation(rounds=2, clients=TWO)
    silent = server.transport()
    session = silent.join(_join_request("silent")).session
    threading.Thread(target=silent.next_task, args=(session,)).start()
    held = server.run_clients(server.client("alive"))
    server.join()
    rounds = _metrics(server)["rounds"]
    assert [r["missing"] for r in rounds] == [["silent"], []], "later rounds do not wait for it"
    assert held[0].version == 2


def test_a_straggler_is_refused_and_keeps_its_work(federation: Start) -> None:
    server = federation(rounds=3, clients=TWO)
    closed = threading.Event()

    def dawdle(task: pb.Train) -> None:
        if task.round == 1:
            assert closed.wait(20)

    def on_second_round(task: pb.Train) -> None:
        if task.round == 2:
            closed.set()

    residuals = []
    straggler = server.client("straggler", trainer=Pull(1.0, dawdle))
    settle = ClientState.settle

    def spy(self: ClientState, residual: Any) -> None:
        residuals.append(residual)
        settle(self, residual)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientState, "settle", spy)
        server.run_clients(straggler, server.client("quick", trainer=Pull(1.0, on_second_round)))
    refused = _metrics(server)["rounds"]
    assert refused[0]["missing"] == ["straggler"]
    assert any(r["reason"] == "LATE" for round_ in refused for r in round_["refused"])
    start = initial_weights(MANIFEST, 0)
    whole = [np.float32(0.5) * (np.float32(1) - w) for w in start]
    assert any(
        residual is not None
        and all(np.allclose(a, b, atol=1e-6) for a, b in zip(residual, whole, strict=True))
        for residual in residuals
    ), "the late update went back into the residual whole"


def test_a_client_that_joins_late_takes_part_from_the_next_round(federation: Start) -> None:
    server = federation(rounds=3, clients={**TWO, "deadline": 30})
    late_may_come = threading.Event()
    late_is_there = threading.Event()

    def on_train(task: pb.Train) -> None:
        late_may_come.set()
        if task.round == 1:
            late_is_there.wait(10)

    early = [server.client(n, trainer=Pull(1.0, on_train)) for n in ("a", "b")]
    transport = server.transport()
    join = transport.join

    def join_late(request: pb.JoinRequest) -> pb.JoinReply:
        assert late_may_come.wait(10)
        reply = join(request)
        late_is_there.set()
        return reply

    transport.join = join_late  # type: ignore[method-assign]
    held = server.run_clients(*early, server.client("late", transport=transport))
    counts = [len(r["clients"]) for r in _metrics(server)["rounds"]]
    assert counts[0] == 2
    assert counts[-1] == 3
    assert len({h.digest for h in held}) == 1


def test_retries_and_duplicates_change_nothing(federation: Start) -> None:
    plain = federation(rounds=1)
    expected = plain.run_clients(*[plain.client(f"c{i}", value=i / 3) for i in range(3)])
    server = federation("again", rounds=1)
    transport = server.transport()
    submit = transport.submit_update
    outcomes = []

    def submit_twice(header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        outcomes.append(submit(header, payload).outcome)
        outcomes.append(submit(header, payload).outcome)
        return submit(header, payload)

    transport.submit_update = submit_twice  # type: ignore[method-assign]
    clients = [server.client(f"c{i}", value=i / 3) for i in (1, 2)]
    held = server.run_clients(server.client("c0", value=0.0, transport=transport), *clients)
    assert outcomes == [pb.ACCEPTED, pb.DUPLICATE]
    assert held[0].digest == expected[0].digest
    row = _metrics(server)["rounds"][0]["clients"][0]["uplink"]
    assert row["retry_bytes"] == 2 * row["message_bytes"]


class Dies(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.mark.parametrize("sent", [False, True])
def test_a_client_that_dies_around_sending_counts_once(federation: Start, sent: bool) -> None:
    codec = {"uplink": "topk(0.1) | quantize(4)", "downlink": "quantize(8) | zstd"}
    undisturbed = federation("undisturbed", clients={"minimum": 1}, compression=codec)
    expected = undisturbed.run_clients(undisturbed.client("a"))[0].digest

    server = federation(clients={"minimum": 1}, compression=codec)
    transport = server.transport()
    submit = transport.submit_update

    def die(header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        if sent:
            submit(header, payload)
        raise Dies

    transport.submit_update = die  # type: ignore[method-assign]
    rounds = []
    trainer = Pull(1.0, lambda task: rounds.append(task.round))
    with pytest.raises(Dies):
        server.run_clients(server.client("a", trainer=trainer, transport=transport))
    (held,) = server.run_clients(server.client("a", trainer=trainer))
    assert rounds == [1, 2, 3], "the update that was ready is sent, not made again"
    assert held.digest == expected


def test_a_damaged_model_is_noticed_and_fetched_whole(federation: Start) -> None:
    server = federation(rounds=2, clients={"minimum": 1})
    damaged = []

    def damage(task: pb.Train) -> None:
        state = ClientState(server.directory / "clients" / "a", _state_key(server))
        held = state.held()
        assert held is not None
        state.save_held(replace(held, weights=[held.weights[0] + 1, *held.weights[1:]]))
        damaged.append(held.version)
        raise Dies

    with pytest.raises(Dies):
        server.run_clients(server.client("a", trainer=Pull(1.0, damage)))
    (held,) = server.run_clients(server.client("a"))
    assert damaged == [0]
    assert held.digest == server.store.versions.newest().digest


def test_a_step_that_does_not_lead_to_the_servers_digest_is_refused() -> None:
    start = initial_weights(MANIFEST, 0)
    codec = parse_codec("float32")
    payload = encode_update(codec, MANIFEST, [w + 1 for w in start]).payload
    link = pb.Link(kind=pb.Link.DELTA, version=1, codec="float32", size=len(payload))
    held = HeldModel(0, weights_digest(start), start)
    with pytest.raises(DigestMismatch, match="version 1 differs from the server's"):
        apply_links(MANIFEST, 0, held, [link], payload)
    link.digest = weights_digest([w + (w + 1) for w in start])
    assert apply_links(MANIFEST, 0, held, [link], payload).digest == link.digest
    with pytest.raises(WireError, match="no version before the delta"):
        apply_links(MANIFEST, 0, None, [link], payload)
    with pytest.raises(WireError, match="do not belong together"):
        apply_links(MANIFEST, 0, held, [link], payload + b"?")


def test_a_round_that_closes_before_the_download_costs_the_client_nothing(
    federation: Start,
) -> None:
    server = federation(rounds=3, clients=TWO)
    transport = server.transport()
    fetch = transport.fetch_model
    delayed = []

    def fetch_late(request: pb.FetchModelRequest, limit: int) -> tuple[list[pb.Link], bytes]:
        if request.version == 0:
            deadline = time.monotonic() + 20
            while server.store.versions.newest().version == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            delayed.append(server.store.versions.newest().version)
        return fetch(request, limit)

    transport.fetch_model = fetch_late  # type: ignore[method-assign]
    held = server.run_clients(server.client("slow", transport=transport), server.client("quick"))
    assert delayed
    assert held[0].digest == held[1].digest


def test_two_clients_of_one_name_are_told(federation: Start) -> None:
    server = federation(rounds=1, clients={"minimum": 2, "deadline": 30})
    first, second = server.transport(), server.transport()
    poll = first.next_task

    def evict(*args: Any) -> pb.NextTaskReply:
        second.join(_join_request("twin"))
        return poll(*args)

    first.next_task = evict  # type: ignore[method-assign]
    with pytest.raises(Rejected, match="another client uses the name 'twin'"):
        server.client("twin", transport=first).run()


def test_given_first_weights_are_downloaded(federation: Start) -> None:
    first = [np.full(spec.shape, 0.25, np.float32) for spec in MANIFEST]
    server = federation(rounds=1, clients={"minimum": 1}, first_weights=first, compression=FLOAT32)
    (held,) = server.run_clients(server.client("a", value=1.0))
    for tensor in held.weights:
        np.testing.assert_array_equal(tensor, np.float32(0.625))
    down = _metrics(server)["rounds"][0]["clients"][0]["downlink"]
    assert down["payload_bytes"] > 0


def test_a_full_disk_refuses_and_loses_nothing(
    federation: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = federation(rounds=1, clients={"minimum": 1})
    save = server.store.runs.save_state
    failures = [sqlite3.OperationalError("database or disk is full")]

    def full_once(state: Any) -> None:
        if state.reported and failures:
            raise failures.pop()
        save(state)

    monkeypatch.setattr(server.store.runs, "save_state", full_once)
    (held,) = server.run_clients(server.client("a"))
    assert not failures
    assert held.version == 1
    assert len(list(server.store.journal.updates(1))) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"payload": b""}, "MALFORMED"),
        ({"payload": b"junk"}, "MALFORMED"),
        ({"payload": bytes(10**6)}, "TOO_LARGE"),
        ({"flip": 40}, "MALFORMED"),
        ({"cut": 9}, "MALFORMED"),
        ({"last_value": np.nan}, "NON_FINITE"),
        ({"last_value": np.finfo(np.float32).max}, "OUT_OF_RANGE"),
        ({"num_examples": 0}, "BAD_EXAMPLE_COUNT"),
        ({"num_examples": 10**8 + 1}, "BAD_EXAMPLE_COUNT"),
        ({"version": 7}, "WRONG_VERSION"),
        ({"round": 2}, "LATE"),
        ({"size": 3}, "MALFORMED"),
    ],
)
def test_a_bad_update_is_refused_and_the_round_goes_on(
    federation: Start, change: dict[str, Any], reason: str
) -> None:
    server = federation(rounds=1, compression=FLOAT32)
    transport = server.transport()
    session = transport.join(_join_request("bad")).session
    honest = [server.client(n, value=1.0) for n in ("a", "b")]
    replies = []

    def attack() -> None:
        while not (task := transport.next_task(session)).HasField("train"):
            pass
        header = pb.UpdateHeader(
            session=session, round=1, version=task.train.version, num_examples=100
        )
        payload = _payload(change)
        header.size = len(payload)
        for field in ("num_examples", "version", "round", "size"):
            if field in change:
                setattr(header, field, change[field])
        replies.append(transport.submit_update(header, payload))
        good = _payload({})
        honest_header = pb.UpdateHeader(
            session=session, round=1, version=0, num_examples=100, size=len(good)
        )
        replies.append(transport.submit_update(honest_header, good))

    thread = threading.Thread(target=attack)
    thread.start()
    held = server.run_clients(*honest)
    thread.join(20)
    bad, good = replies
    assert bad.outcome == pb.REFUSED
    assert pb.Reason.Name(bad.reason) == reason
    assert bad.detail
    assert good.outcome == pb.ACCEPTED, "the same client may still send a good update"
    refused = _metrics(server)["rounds"][0]["refused"]
    assert [(r["client"], r["reason"]) for r in refused] == [("bad", reason)]
    for start, end in zip(initial_weights(MANIFEST, 0), held[0].weights, strict=True):
        np.testing.assert_allclose(end, 0.5 * (start + 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "examples", "text"),
    [
        ("x", (28, 28, 1), 10, 5, "the data are uint8 [28, 28, 1], the task needs uint8 [8, 8, 1]"),
        ("x", SHAPE, 11, 5, "classes up to 10 do not fit"),
        ("x", SHAPE, 10, 0, "not one example"),
        ("../x", SHAPE, 10, 5, "a client name has"),
        ("", SHAPE, 10, 5, "a client name has"),
    ],
)
def test_a_client_that_does_not_fit_is_told_why(
    federation: Start, name: str, shape: tuple[int, ...], classes: int, examples: int, text: str
) -> None:
    request = _join_request(name)
    request.data.CopyFrom(summary(image_task(shape, CLASSES), examples))
    request.data.num_classes = classes
    with pytest.raises(Rejected, match=re.escape(text)):
        federation().transport().join(request)


def test_a_client_with_other_classes_is_told_which(federation: Start) -> None:
    request = _join_request("x")
    request.data.class_names[:] = ["b", "a"]
    with pytest.raises(Rejected, match="classes b, a are not the run's a, b, c"):
        federation().transport().join(request)


def test_a_client_that_lacks_a_codec_is_told_which(federation: Start) -> None:
    request = _join_request("x")
    del request.capabilities.stages[:]
    with pytest.raises(Rejected, match="needs quantize, zstd, which this client cannot do"):
        federation().transport().join(request)


def test_the_ledger_is_what_went_over_the_wire(federation: Start) -> None:
    """Count the messages' bytes at the client, on their way into and out of gRPC."""
    server = federation(rounds=2, clients={"minimum": 1})
    seen: dict[str, int] = {"up": 0, "down": 0}
    transport = server.transport()
    transport._stub = _Meter(transport._stub, seen)  # type: ignore[assignment]
    server.run_clients(server.client("only", transport=transport))
    server.join()
    entries = server.store.ledger.entries()
    up = sum(e.message_bytes for e in entries if e.direction == "uplink")
    down = sum(e.message_bytes for e in entries if e.direction == "downlink")
    assert (up, down) == (seen["up"], seen["down"])
    first = _metrics(server)["rounds"][0]["clients"][0]
    payload = server.store.versions.all()[1].payload
    assert first["downlink"]["payload_bytes"] == 0, "version 0 costs a seed"
    second = _metrics(server)["rounds"][1]["clients"][0]
    assert second["downlink"]["payload_bytes"] == len(payload)


class _Meter:
    """Wraps a stub and adds up what every message takes in its gRPC stream."""

    def __init__(self, stub: Any, seen: dict[str, int]) -> None:
        self._stub = stub
        self._seen = seen

    def _up(self, message: Any) -> Any:
        self._seen["up"] += framed_size(message)
        return message

    def _down(self, message: Any) -> Any:
        self._seen["down"] += framed_size(message)
        return message

    def Join(self, request: Any, timeout: float) -> Any:
        return self._down(self._stub.Join(self._up(request), timeout=timeout))

    def NextTask(self, request: Any, timeout: float) -> Any:
        return self._down(self._stub.NextTask(self._up(request), timeout=timeout))

    def FetchModel(self, request: Any, timeout: float) -> Iterator[Any]:
        for chunk in self._stub.FetchModel(self._up(request), timeout=timeout):
            yield self._down(chunk)

    def SubmitUpdate(self, chunks: Any, timeout: float) -> Any:
        return self._down(self._stub.SubmitUpdate(map(self._up, chunks), timeout=timeout))


def test_what_is_not_payload_is_a_tenth_of_868_bytes(federation: Start) -> None:
    """All messages that a client sends in a round, polls included."""
    server = federation(rounds=3, compression={"uplink": "sketch(0.9)"})
    server.run_clients(*(server.client(name) for name in "abc"))
    sent = [e for e in server.store.ledger.entries() if e.round == 2 and e.direction == "uplink"]
    payloads = [e.payload_bytes for e in sent if e.payload_bytes]
    assert len(payloads) == 3
    assert min(payloads) > 300, "small enough payloads have shorter lengths"
    overhead = sum(e.message_bytes for e in sent) - sum(payloads)
    assert overhead / 3 <= 86.8


class Wire:
    """A TCP relay that counts the bytes of each direction."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._to = host, int(port)
        self.bytes = {"up": 0, "down": 0}
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with self._server:
            here, _ = self._server.accept()
        there = socket.create_connection(self._to)
        both = [(here, there, "up"), (there, here, "down")]
        relays = [threading.Thread(target=self._relay, args=one) for one in both]
        with here, there:
            for relay in relays:
                relay.start()
            for relay in relays:
                relay.join()

    def _relay(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self.bytes[way] += len(data)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_what_http2_adds_to_the_ledger_is_known(federation: Start) -> None:
    """docs/metrics.md gives these figures: per connection, and per round of three calls."""
    seen = []
    for folder, rounds in (("short", 2), ("long", 12)):
        server = federation(folder, rounds=rounds)
        wire = Wire(server.address)
        transport = GrpcTransport(wire.address, give_up_after=10)
        watched = server.client("a", transport=transport)
        server.run_clients(watched, server.client("b"), server.client("c"))
        transport.close()
        entries = [e for e in server.store.ledger.entries() if e.client == "a"]
        counted = [
            sum(e.message_bytes for e in entries if e.direction == way)
            for way in ("uplink", "downlink")
        ]
        seen.append((wire.bytes["up"] - counted[0], wire.bytes["down"] - counted[1]))
    for short, long in zip(*seen, strict=True):
        assert 0 < short < 2500
        assert 60 < (long - short) / 10 < 300


def test_a_client_that_lost_its_model_gets_the_shortest_way_back(federation: Start) -> None:
    server = federation(rounds=3, clients={"minimum": 1})
    (held,) = server.run_clients(server.client("only"))
    session = server.coordinator.admission.join(_join_request("new")).session
    nothing = pb.FetchModelRequest(session=session, version=3)
    deliveries = Deliveries(server.coordinator)
    route = deliveries.deliver("new", nothing).route
    assert [link.kind for link in route.links] == [pb.Link.SEED] + 3 * [pb.Link.DELTA]
    wrong = pb.FetchModelRequest(session=session, version=3, have_version=2, have_digest=b"?")
    assert len(deliveries.deliver("new", wrong).route.links) == 4, "a digest mismatch starts over"
    right = pb.FetchModelRequest(
        session=session, version=3, have_version=3, have_digest=held.digest
    )
    assert deliveries.deliver("new", right).route.links == []


def test_health_and_reflection_answer(federation: Start) -> None:
    with grpc.insecure_channel(federation().address) as channel:
        check = health_pb2.HealthCheckRequest(service="featherfed.v1.Federation")
        assert health_pb2_grpc.HealthStub(channel).Check(check, timeout=5).status == 1
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        reply = next(
            reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([ask]), timeout=5
            )
        )
        names = {service.name for service in reply.list_services_response.service}
        assert "featherfed.v1.Federation" in names


def test_a_taken_port_is_said_plainly(federation: Start) -> None:
    import asyncio

    from featherfed.server.rpc.server import create_server
    from featherfed.server.rpc.service import FederationService

    first = federation()
    host, port = first.address.split(":")
    server = first.settings.server.model_copy(update={"port": int(port)})
    taken = first.settings.model_copy(update={"server": server})
    with pytest.raises(ServerError, match=f"cannot listen on {host}:{port}: it is in use"):
        asyncio.run(create_server(FederationService(first.coordinator), taken))


def test_a_server_that_is_not_there_is_said_plainly() -> None:
    transport = GrpcTransport("127.0.0.1:9", give_up_after=0.1)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        transport.join(_join_request("x"))


def test_other_settings_do_not_continue_a_run(federation: Start) -> None:
    server = federation(rounds=1)
    changed = server.settings.model_copy(update={"seed": 2})
    with pytest.raises(ServerError, match=r"holds run 'test-[0-9a-f]+' with other settings"):
        Coordinator(
            changed,
            server.store,
            server.coordinator.plan,
            MANIFEST,
            TASK,
            DistanceEvaluator(),
            time.time,
        )


def test_two_servers_do_not_share_a_run(federation: Start) -> None:
    server = federation(rounds=1)
    with pytest.raises(ServerError, match=r"another server uses .*run; stop it first"):
        Store(server.directory / "run.db")


def test_sampling_a_fraction(federation: Start) -> None:
    server = federation(rounds=3, clients={"minimum": 4, "fraction": 0.5})
    server.run_clients(*[server.client(f"c{i}") for i in range(4)])
    cohorts = [[c["client"] for c in r["clients"]] for r in _metrics(server)["rounds"]]
    assert [len(c) for c in cohorts] == [2, 2, 2]
    assert len({tuple(c) for c in cohorts}) > 1


def _join_request(name: str) -> pb.JoinRequest:
    session = Session(profile(name), None, None, None)  # type: ignore[arg-type]
    return session._join_request()


def _state_key(server: Federation) -> str:
    return f"{server.coordinator.plan.run} {MANIFEST.digest.hex()}"


def _metrics(server: Federation) -> Any:
    return metrics.collect(server.store, server.settings, TASK, MANIFEST, {})


def _payload(change: dict[str, Any]) -> bytes:
    """An honest update of Pull(1.0) in round 1, or what `change` makes of it."""
    if "payload" in change:
        return bytes(change["payload"])
    update = [np.float32(0.5) * (np.float32(1) - w) for w in initial_weights(MANIFEST, 0)]
    codec = parse_codec("float32")
    if "last_value" in change:
        return _hostile_float32(codec, change["last_value"])
    payload = encode_update(codec, MANIFEST, update).payload
    if "flip" in change:
        at = change["flip"]
        payload = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
    return payload[: len(payload) - change.get("cut", 0)]


def _hostile_float32(codec: Any, value: float) -> bytes:
    """A well-formed payload that an honest encoder refuses to make."""
    honest = encode_update(codec, MANIFEST, initial_weights(MANIFEST, 0)).payload
    context = str(codec).encode() + MANIFEST.digest
    body = bytearray(unseal(honest, context))
    body[-4:] = np.float32(value).tobytes()
    return seal(bytes(body), context)


def test_every_reason_has_a_status_code() -> None:
    assert set(STATUS_OF_REASON) == set(pb.Reason.values())
