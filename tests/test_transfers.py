"""Uploads and downloads that break off, stall, lie or come twice, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.clients import Pull, profile
from support.coordinator import THREE, Clock, Run, opened
from support.federation import Federation
from support.updates import update

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest, TensorSpec, Uniform
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.edge_client import partial_download
from featherfed.edge_client.follower import decode_release
from featherfed.edge_client.grpc_releases import GrpcReleaseSource
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState
from featherfed.edge_client.training_step import unpack_step
from featherfed.edge_client.transport import CHUNK_BYTES
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.coordinator.exported_step import ExportedStep
from featherfed.server.errors import Refused
from featherfed.server.observability.prometheus import Telemetry
from featherfed.server.rounds.transitions import Phase
from featherfed.server.rpc import streams
from featherfed.server.storage.records import LedgerEntry
from featherfed.server.transfers import leases, uploads

Start = Callable[..., Federation]

LARGE = Manifest((TensorSpec("kernel", (400, 256), initial=Uniform(0.1)), TensorSpec("b", (64,))))
PAYLOAD = 4 * LARGE.num_values
FLOAT32 = {"uplink": "float32", "downlink": "float32", "broadcast": "aggregate"}
ONE = {"minimum": 1, "deadline": 60, "patience": 1}
CUTS = PAYLOAD // CHUNK_BYTES


class Relay:
    """A TCP relay of 1 MB/s that cuts a connection after so many bytes of one direction.

    Not faster: what gRPC has not handed over when a connection ends is lost.
    """

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.to = host, int(port)
        self.bytes = {"up": 0, "down": 0}
        self.cuts: dict[str, list[int]] = {"up": [], "down": []}
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def cut_all(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._server.accept()
                try:
                    there = socket.create_connection(self.to)
                except OSError:
                    here.close()
                    continue
                self._open += here, there
                for one, other, way in ((here, there, "up"), (there, here, "down")):
                    relay = threading.Thread(target=self._relay, args=(one, other, way))
                    relay.daemon = True
                    relay.start()

    def _relay(self, one: socket.socket, other: socket.socket, way: str) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := one.recv(4096):
                cuts = self.cuts[way]
                over = bool(cuts) and passed + len(data) >= cuts[0]
                data = data[: cuts.pop(0) - passed] if over else data
                time.sleep(len(data) / 1e6)
                other.sendall(data)
                passed += len(data)
                self.bytes[way] += len(data)
                if over:
                    time.sleep(0.1)
                    break
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relayed() -> Iterator[Callable[..., tuple[Relay, GrpcTransport]]]:
    """Make transports that talk through a relay."""
    made: list[tuple[Relay, GrpcTransport]] = []

    def make(server: Federation, kept: Path | None = None) -> tuple[Relay, GrpcTransport]:
        relay = Relay(server.address)
        made.append((relay, GrpcTransport(relay.address, 20, partial=kept)))
        return made[-1]

    yield make
    for relay, transport in made:
        transport.close()
        relay.close()


def large(federation: Start, folder: str = "run", **changes: Any) -> Federation:
    usual = {"rounds": 1, "clients": ONE, "compression": FLOAT32, "manifest": LARGE}
    return federation(folder, **{**usual, **changes})


def ledger(server: Federation, direction: str) -> dict[str, LedgerEntry]:
    """One client's entries by kind, over all rounds."""
    found: dict[str, LedgerEntry] = {}
    for e in server.store.ledger.entries():
        if e.direction == direction:
            old = found.get(e.kind, LedgerEntry(0, "", direction, e.kind, 0, 0))
            payload = old.payload_bytes + e.payload_bytes
            message = old.message_bytes + e.message_bytes
            found[e.kind] = LedgerEntry(0, "", direction, e.kind, payload, message)
            assert e.payload_bytes >= 0
            assert e.message_bytes >= 0
    return found


LIMIT = 2**30
FIRST = [np.random.default_rng(5).normal(0, 0.1, spec.shape).astype(np.float32) for spec in LARGE]


@pytest.fixture
def undisturbed(federation: Start) -> Federation:
    """A run without any trouble, over."""
    server = large(federation, "undisturbed", first_weights=FIRST)
    server.run_clients(server.client("a"))
    server.join()
    return server


def test_an_upload_cut_at_every_chunk_is_sent_about_once(
    federation: Start, relayed: Any, undisturbed: Federation
) -> None:
    server = large(federation, first_weights=FIRST)
    relay, transport = relayed(server)
    relay.cuts["up"] = [CHUNK_BYTES + 2000] * CUTS
    (held,) = server.run_clients(server.client("a", transport=transport))
    server.join()
    assert not relay.cuts["up"]
    assert held.digest == undisturbed.store.versions.newest().digest
    up, plain = ledger(server, "uplink"), ledger(undisturbed, "uplink")
    payload = plain["transfer"].payload_bytes
    print(f"up {relay.bytes['up']} bytes for {payload}: {relay.bytes['up'] / payload:.3f}, {up}")
    assert relay.bytes["up"] < 1.1 * payload
    assert up["transfer"].payload_bytes == payload
    assert up["transfer"].message_bytes < 1.002 * payload
    assert up["retry"].payload_bytes == 0, "all that was received was of use"


def test_a_download_cut_at_every_chunk_is_sent_about_once(
    federation: Start, relayed: Any, undisturbed: Federation
) -> None:
    server = large(federation, first_weights=FIRST)
    relay, transport = relayed(server)
    relay.cuts["down"] = [CHUNK_BYTES + 4000] * (CUTS - 1)
    (held,) = server.run_clients(server.client("a", transport=transport))
    server.join()
    assert not relay.cuts["down"]
    assert held.digest == undisturbed.store.versions.newest().digest
    down, plain = ledger(server, "downlink"), ledger(undisturbed, "downlink")
    payload = plain["transfer"].payload_bytes
    print(f"down {relay.bytes['down']} bytes for {payload}: {relay.bytes['down'] / payload:.3f}")
    assert relay.bytes["down"] < 1.15 * payload
    assert down["transfer"].payload_bytes == payload
    assert down["transfer"].message_bytes < 1.001 * payload
    assert server.store.ledger.has_model(1, "a")


class Dies(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def test_a_client_killed_in_a_download_goes_on_in_a_new_process(
    federation: Start, relayed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = large(federation, first_weights=FIRST)
    kept = server.directory / "clients" / "a" / partial_download.FILE_NAME
    _, first = relayed(server, kept)
    relay, second = relayed(server, kept)
    monkeypatch.setattr(partial_download, "WRITE_BYTES", CHUNK_BYTES)
    with monkeypatch.context() as patch:
        add, count = partial_download.PartialDownload.add, iter(range(9))

        def die(self: partial_download.PartialDownload, data: bytes) -> None:
            add(self, data)
            if next(count) == 3:
                raise Dies

        patch.setattr(partial_download.PartialDownload, "add", die)
        patch.setattr(partial_download.PartialDownload, "__exit__", lambda *_: None)
        with pytest.raises(Dies):
            server.run_clients(server.client("a", transport=first))
    assert kept.stat().st_size > 4 * CHUNK_BYTES
    session = second.join(_join("a")).session
    request = pb.FetchModelRequest(session=session, version=0)
    links, data = second.fetch_model(request, LIMIT)
    assert sum(link.size for link in links) == len(data)
    assert relay.bytes["down"] < len(data) - 3 * CHUNK_BYTES
    assert not kept.exists()
    assert server.transport().fetch_model(request, LIMIT) == (links, data)


def _join(name: str) -> pb.JoinRequest:
    session = Session(profile(name), None, None, None)  # type: ignore[arg-type]
    return session._join_request()


class Peer:
    """A client of raw calls that has joined, with an honest update of round 1."""

    def __init__(self, server: Federation, name: str = "peer") -> None:
        self.server = server
        self.transport = server.transport()
        self.stub = self.transport._stub
        self.session = self.transport.join(_join(name)).session
        while not self.transport.next_task(self.session).HasField("train"):
            pass
        update = [np.float32(0.5) * (np.float32(1) - w) for w in initial_weights(LARGE, 0)]
        self.payload = encode_update(parse_codec("float32"), LARGE, update).payload

    def header(self, **changes: Any) -> pb.UpdateHeader:
        fields = {
            "session": self.session,
            "round": 1,
            "num_examples": 100,
            "size": len(self.payload),
            "digest": hashlib.sha256(self.payload).digest()[:8],
        }
        return pb.UpdateHeader(**{**fields, **changes})

    def chunks(self, header: pb.UpdateHeader, chunks: int) -> Iterator[pb.UpdateChunk]:
        yield pb.UpdateChunk(header=header, data=self.payload[:CHUNK_BYTES])
        for at in range(CHUNK_BYTES, chunks * CHUNK_BYTES, CHUNK_BYTES):
            yield pb.UpdateChunk(data=self.payload[at : at + CHUNK_BYTES])

    def break_off(self, header: pb.UpdateHeader, chunks: int) -> None:
        """Send so many chunks, see them arrive, and hang up."""
        hold = threading.Event()

        def some() -> Iterator[pb.UpdateChunk]:
            yield from self.chunks(header, chunks)
            hold.wait(5)

        call = self.stub.SubmitUpdate.future(some())
        time.sleep(0.5)
        call.cancel()
        hold.set()
        time.sleep(0.3)

    def offset(self, header: pb.UpdateHeader) -> int:
        request = pb.ResumeUploadRequest(header=header)
        return int(self.stub.ResumeUpload(request, timeout=10).offset)

    def submit(self, header: pb.UpdateHeader) -> pb.SubmitReply:
        return self.transport.submit_update(header, self.payload)

    def refusal(self, call: Callable[[], Any]) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return f"{caught.value.code().name} {caught.value.details()}"


def _break_off_in(transport: GrpcTransport, chunks: int = 3) -> None:
    """Make a transport's client die when so many chunks of its update have arrived."""

    def break_off(header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        peer = Peer.__new__(Peer)
        peer.stub, peer.payload = transport._stub, payload
        peer.break_off(header, chunks)
        raise Dies

    transport.submit_update = break_off  # type: ignore[method-assign]


def test_what_is_kept_is_used_for_the_same_update_only(federation: Start) -> None:
    server = large(federation, clients={**ONE, "minimum": 1})
    peer = Peer(server)
    peer.break_off(peer.header(), 3)
    assert peer.offset(peer.header()) == 3 * CHUNK_BYTES
    assert peer.offset(peer.header(digest=bytes(8))) == 0
    assert peer.offset(peer.header(digest=b"")) == 0
    assert peer.offset(peer.header(size=len(peer.payload) - 1)) == 0
    assert peer.offset(peer.header(round=2)) == len(peer.payload), "the header alone says why"
    lie = peer.header(offset=2 * CHUNK_BYTES)
    said = peer.refusal(lambda: peer.stub.SubmitUpdate(peer.chunks(lie, 1), timeout=10))
    assert said.startswith("RESOURCE_EXHAUSTED BUSY: 196608 bytes are here, not 131072")
    assert peer.offset(peer.header()) == 3 * CHUNK_BYTES, "a lie changes nothing"
    assert ledger(server, "uplink")["retry"].payload_bytes == 4 * CHUNK_BYTES
    reply = peer.submit(peer.header(offset=peer.offset(peer.header())))
    assert reply.outcome == pb.ACCEPTED
    up = ledger(server, "uplink")
    assert up["retry"].payload_bytes == CHUNK_BYTES, "the lie's"
    assert up["transfer"].payload_bytes == len(peer.payload)
    assert next(server.store.journal.updates(1)).num_examples == 100
    assert peer.offset(peer.header()) == len(peer.payload)
    end = peer.header(offset=len(peer.payload))
    assert peer.submit(end).outcome == pb.DUPLICATE
    assert peer.submit(peer.header()).outcome in (pb.DUPLICATE, pb.REFUSED)
    assert len(server.store._database.run("SELECT * FROM uploads")) == 0


def test_an_update_that_came_whole_and_damaged_is_refused(federation: Start) -> None:
    peer = Peer(large(federation))
    good, middle = peer.payload, len(peer.payload) // 2
    peer.payload = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    reply = peer.submit(peer.header(digest=hashlib.sha256(good).digest()[:8]))
    assert (reply.outcome, reply.reason) == (pb.REFUSED, pb.MALFORMED)
    assert "checksum mismatch" in reply.detail
    peer.payload = good
    assert peer.submit(peer.header()).outcome == pb.ACCEPTED


def test_two_halves_of_different_updates_are_refused(federation: Start) -> None:
    server = large(federation)
    peer = Peer(server)
    peer.break_off(peer.header(), 2)
    good = peer.payload
    peer.payload = good[:-1] + bytes([good[-1] ^ 1])
    lie = peer.header(offset=2 * CHUNK_BYTES, digest=hashlib.sha256(good).digest()[:8])
    reply = peer.submit(lie)
    assert (reply.outcome, reply.reason) == (pb.REFUSED, pb.MALFORMED)
    assert "not the one that its digest announced" in reply.detail
    peer.payload = good
    assert peer.submit(peer.header()).outcome == pb.ACCEPTED, "from the beginning"


def test_a_newer_upload_of_a_client_takes_the_place_of_the_older(federation: Start) -> None:
    server = large(federation)
    peer, hold = Peer(server), threading.Event()

    def hang() -> Iterator[pb.UpdateChunk]:
        yield from peer.chunks(peer.header(), 2)
        hold.wait(20)

    older = peer.stub.SubmitUpdate.future(hang())
    time.sleep(0.5)
    began = time.monotonic()
    twin = server.transport()
    peer.session = twin.join(_join("peer")).session
    offset = peer.offset(peer.header())
    assert offset == 2 * CHUNK_BYTES
    assert time.monotonic() - began < 5
    assert peer.submit(peer.header(offset=offset)).outcome == pb.ACCEPTED
    hold.set()
    assert "has begun anew" in str(older.exception(timeout=5))
    assert len(list(server.store.journal.updates(1))) == 1


def test_a_closed_round_takes_no_rest_and_the_work_is_not_lost(federation: Start) -> None:
    server = large(
        federation,
        rounds=3,
        clients={"minimum": 2, "deadline": 2, "quorum": 0.5},
        compression={"uplink": "quantize(8)"},
    )
    closed, back = threading.Event(), threading.Event()
    transport = server.transport()
    _break_off_in(transport, 1)

    def on_train(task: pb.Train) -> None:
        if task.round == 2:
            closed.set()
            assert back.wait(20)

    quick = threading.Thread(
        target=lambda: server.run_clients(server.client("quick", trainer=Pull(1.0, on_train)))
    )
    quick.start()
    with pytest.raises(Dies):
        server.run_clients(server.client("late", transport=transport))
    assert len(server.store._database.run("SELECT * FROM uploads")) == 1
    assert closed.wait(20)
    assert server.store._database.run("SELECT * FROM uploads") == []
    residuals = []
    settle = ClientState.settle

    def spy(self: ClientState, residual: Any) -> None:
        residuals.append(residual)
        settle(self, residual)

    second = server.transport()
    poll = second.next_task

    def come_back(*args: Any) -> pb.NextTaskReply:
        threading.Timer(0.5, back.set).start()
        return poll(*args)

    second.next_task = come_back  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientState, "settle", spy)
        server.run_clients(server.client("late", transport=second))
    quick.join(20)
    assert any(r is not None and abs(r[0]).max() > 0.3 for r in residuals), "it went back whole"
    late = [r.reason for r in server.store.refusals.all() if r.client == "late"]
    assert late == ["LATE"]
    sent = [
        e
        for e in server.store.ledger.entries()
        if (e.client, e.round, e.kind) == ("late", 1, "retry")
    ]
    assert [e.payload_bytes for e in sent] == [CHUNK_BYTES], "the rest was not sent"


def test_an_upload_whose_round_closes_before_its_last_chunk_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STORED_CHUNK_BYTES", 1000)
    clock = Clock()
    run = opened(Run(tmp_path, clock, clients=THREE))
    payload = update()
    header = pb.UpdateHeader(
        session=run.sessions["a"], round=1, num_examples=1, size=len(payload),
        digest=hashlib.sha256(payload).digest()[:8],
    )  # fmt: skip

    async def stream() -> AsyncIterator[pb.UpdateChunk]:
        yield pb.UpdateChunk(header=header, data=payload[:2000])
        yield pb.UpdateChunk(data=payload[2000:-10])
        run.submit("b")
        run.submit("c")
        clock.now += 200
        assert run.tick().phase is Phase.AGGREGATING
        yield pb.UpdateChunk(data=payload[-10:])

    async def identify(session: int) -> str:
        return "a"

    received = asyncio.run(
        uploads.Uploads(run.coordinator, Telemetry()).receive(stream(), identify)
    )
    assert received.reply is not None
    assert received.reply.reason == pb.LATE, received.reply.detail
    run.store.close()


def test_a_client_killed_in_an_upload_goes_on_in_a_new_process(
    federation: Start, undisturbed: Federation
) -> None:
    server = large(federation, first_weights=FIRST)
    transport = server.transport()
    _break_off_in(transport)
    with pytest.raises(Dies):
        server.run_clients(server.client("a", transport=transport))
    (held,) = server.run_clients(server.client("a"))
    server.join()
    assert held.digest == undisturbed.store.versions.newest().digest
    up = ledger(server, "uplink")
    assert up["retry"].payload_bytes == 0
    assert up["transfer"].payload_bytes == ledger(undisturbed, "uplink")["transfer"].payload_bytes


def test_a_server_killed_in_an_upload_goes_on_with_what_it_had(
    federation: Start, relayed: Any, undisturbed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STORED_CHUNK_BYTES", CHUNK_BYTES)
    server = large(federation, "before", first_weights=FIRST)
    relay, transport = relayed(server)
    relay.cuts["up"] = [4 * CHUNK_BYTES]
    keep, killed = server.store.transfers.add_chunk, threading.Event()
    after = server.directory.parent / "after"

    def add_and_die(chunk: Any) -> None:
        keep(chunk)
        if chunk.at == 2 * CHUNK_BYTES:
            killed.set()

    monkeypatch.setattr(server.store.transfers, "add_chunk", add_and_die)
    result: list[Any] = []
    client = server.client("a", transport=transport)
    thread = threading.Thread(target=lambda: result.extend(server.run_clients(client)))
    thread.start()
    assert killed.wait(20)
    time.sleep(0.3)
    after.mkdir()
    for path in server.directory.glob("run.db*"):  # what a SIGKILL leaves
        shutil.copy(path, after / path.name)
    second = large(federation, "after", first_weights=FIRST)
    relay.to = ("127.0.0.1", int(second.address.rpartition(":")[2]))
    relay.cut_all()
    thread.join(30)
    second.join()
    assert result[0].digest == undisturbed.store.versions.newest().digest
    payload = ledger(undisturbed, "uplink")["transfer"].payload_bytes
    print(f"up {relay.bytes['up']} bytes for {payload} with a server killed")
    assert relay.bytes["up"] < 1.4 * payload
    assert ledger(second, "uplink")["transfer"].payload_bytes == payload


QUICK = {"stall_seconds": 1.0}


def test_slow_and_odd_uploads_end_with_a_reason(
    federation: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(uploads, "MIN_BYTES_PER_SECOND", 1e6)
    server = large(federation, limits=QUICK)
    peer = Peer(server)

    def send(chunks: Iterator[pb.UpdateChunk], pause: float) -> Any:
        def slowly() -> Iterator[pb.UpdateChunk]:
            for chunk in chunks:
                yield chunk
                time.sleep(pause)

        return lambda: peer.stub.SubmitUpdate(slowly(), timeout=20)

    never = threading.Event()

    def nothing() -> Iterator[pb.UpdateChunk]:
        never.wait(5)
        yield from ()

    said = peer.refusal(lambda: peer.stub.SubmitUpdate(nothing(), timeout=20))
    assert said.startswith("DEADLINE_EXCEEDED TOO_SLOW")
    never.set()
    stalls = send(peer.chunks(peer.header(), 1), 5)
    assert peer.refusal(stalls).startswith("DEADLINE_EXCEEDED TOO_SLOW")
    tiny = (pb.UpdateChunk(data=b"x") for _ in range(60))
    head = iter([pb.UpdateChunk(header=peer.header())])
    trickle = send(itertools.chain(head, tiny), 0.1)
    assert peer.refusal(trickle).startswith("DEADLINE_EXCEEDED TOO_SLOW")
    empty = itertools.chain(peer.chunks(peer.header(), 1), iter([pb.UpdateChunk()]))
    reply = peer.stub.SubmitUpdate(empty, timeout=10)
    assert (reply.reason, reply.detail) == (pb.MALFORMED, "a chunk without data")
    short = peer.stub.SubmitUpdate(peer.chunks(peer.header(), 2), timeout=10)
    assert (short.reason, "131072 sent" in short.detail) == (pb.MALFORMED, True)
    more = peer.header(size=CHUNK_BYTES + 5)
    reply = peer.stub.SubmitUpdate(peer.chunks(more, 3), timeout=10)
    assert (reply.reason, "more than the" in reply.detail) == (pb.MALFORMED, True)
    large_ = peer.header(size=2**31)
    reply = peer.stub.SubmitUpdate(peer.chunks(large_, 1), timeout=10)
    assert reply.reason == pb.TOO_LARGE
    assert server.store._database.run("SELECT * FROM uploads") == []
    assert peer.submit(peer.header()).outcome == pb.ACCEPTED
    counts = {(r.client, r.reason): r.count for r in server.store.refusals.all()}
    assert counts == {
        ("(stranger)", "TOO_SLOW"): 1,
        ("peer", "TOO_SLOW"): 2,
        ("peer", "MALFORMED"): 3,
        ("peer", "TOO_LARGE"): 1,
    }


def test_a_full_queue_asks_to_come_again(federation: Start) -> None:
    server = large(
        federation, clients={**ONE, "minimum": 2}, limits={"queued_bytes": PAYLOAD + 100_000}
    )
    other: list[Peer] = []
    thread = threading.Thread(target=lambda: other.append(Peer(server, "b")))
    thread.start()
    first = Peer(server, "a")
    thread.join(10)
    hold = threading.Event()

    def hang() -> Iterator[pb.UpdateChunk]:
        yield from first.chunks(first.header(), 2)
        hold.wait(20)

    call = first.stub.SubmitUpdate.future(hang())
    time.sleep(0.5)
    second = other[0]
    said = second.refusal(
        lambda: second.stub.SubmitUpdate(second.chunks(second.header(), 7), timeout=10)
    )
    assert said.startswith("RESOURCE_EXHAUSTED BUSY: updates of")
    assert "BUSY" in second.refusal(lambda: second.offset(second.header())), "before its bytes"
    threading.Timer(1.5, call.cancel).start()
    assert second.submit(second.header()).outcome == pb.ACCEPTED, "it backed off and came again"
    hold.set()
    assert {row.reason for row in server.store.refusals.all()} == {"BUSY"}


def test_a_reader_that_reads_nothing_is_let_go(
    federation: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MIN_BYTES_PER_SECOND", 1e9)
    server = large(federation, limits=QUICK, first_weights=FIRST)
    options = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
    peer = Peer(server)
    with grpc.insecure_channel(server.address, options=options) as channel:
        stub = pb_grpc.FederationStub(channel)
        request = pb.FetchModelRequest(session=peer.session, version=0)
        stream = stub.FetchModel(request)
        next(stream)
        time.sleep(3)
        assert ledger(server, "downlink")["retry"].payload_bytes > 0
        with pytest.raises(grpc.RpcError, match="TOO_SLOW"):
            list(stream)
    links, data = peer.transport.fetch_model(request, LIMIT)
    assert sum(link.size for link in links) == len(data)
    assert server.store.ledger.has_model(1, "peer")


def test_a_lie_about_a_download_marks_nothing_as_sent(federation: Start) -> None:
    server = large(federation, first_weights=FIRST)
    peer = Peer(server)
    ask = pb.FetchModelRequest(session=peer.session, version=0, offset=2**32 - 1)
    stream = peer.stub.FetchModel(ask)
    first = next(stream)
    assert first.offset == 0, "nothing of it was sent before"
    stream.cancel()
    time.sleep(0.5)
    ledger(server, "downlink")
    request = pb.FetchModelRequest(session=peer.session, version=0)
    links, data = peer.transport.fetch_model(request, LIMIT)
    assert len(data) == sum(link.size for link in links)
    ledger(server, "downlink")
    again = list(peer.stub.FetchModel(ask))
    assert (again[0].offset, len(again[0].data)) == (len(data), 0)
    found = ledger(server, "downlink")
    assert found["transfer"].payload_bytes == len(data)


def test_a_step_and_a_release_go_on_after_a_cut(federation: Start, relayed: Any) -> None:
    noise = np.random.default_rng(1).bytes(3 * CHUNK_BYTES)
    stay = {"port": 0, "linger": 1, "stay": True}
    server = large(federation, step=ExportedStep(noise), server=stay)
    relay, transport = relayed(server)
    join = _join("lite")
    join.capabilities.runtime = "litert"
    reply = transport.join(join)
    relay.cuts["down"] = [CHUNK_BYTES + 4000] * 2
    data = transport.fetch_step(reply.session, reply.step)
    assert unpack_step(reply.step, data) == noise
    assert not relay.cuts["down"]
    server.releases._export = lambda kind: (1, noise)
    server.run_clients(server.client("lite"))
    relay, _ = relayed(server)
    relay.cuts["down"] = [CHUNK_BYTES + 4000] * 2
    source = GrpcReleaseSource(relay.address, 20)
    found = source.fetch_release(pb.FetchReleaseRequest(device="d"), 10**6)
    source.close()
    assert found
    assert decode_release(*found, b"") == noise
    assert not relay.cuts["down"]
    assert relay.bytes["down"] < 1.1 * len(noise)
    down = ledger(server, "downlink")
    assert down["release"].payload_bytes == found[0].compressed


def test_a_read_that_is_given_up_is_not_cancelled() -> None:
    """gRPC would never free what it had in hand (grpc/grpc#43360)."""
    seen: list[str] = []

    async def scenario() -> None:
        arrived = asyncio.Event()

        async def stream() -> AsyncIterator[pb.UpdateChunk]:
            try:
                await arrived.wait()
                seen.append("read to its end")
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            yield pb.UpdateChunk()

        with pytest.raises(Refused, match="stands still"):
            await leases.Lease().wait_for(anext(stream()), leases.now() + 0.05)
        arrived.set()
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert seen == ["read to its end"]
