"""Faults of a peer, injected into a running round with four honest clients.

`PYTHONPATH=tests python -m support.faults` tries all of them and prints the table;
tests/test_faults.py tests each.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from backports import zstd
from google.protobuf.message import Message
from support.clients import Pull
from support.federation import Federation, settings
from support.models import MANIFEST, TASK, summary

from featherfed.compression.buffer import varint
from featherfed.compression.exchange.manifest import Manifest, TensorSpec
from featherfed.compression.registry import parse_codec
from featherfed.compression.wire import seal
from featherfed.edge_client.credentials import Credentials, load_credentials
from featherfed.edge_client.errors import Rejected, Unreachable
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.state import HeldModel
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.proto.protocol import PROTOCOL
from featherfed.server.access.authority import Authority
from featherfed.server.observability import metrics_json as metrics

CODEC = "float32 | zstd"
HONEST = {"anna": 0.5, "bert": -1.0, "cleo": 2.0, "dora": 0.25}
DEADLINE = 1.0
SLACK = 5.0
"""Seconds that a round may take beyond its deadline on two busy cores."""


CAN = pb.Capabilities(stages=["float32", "zstd", "quantize"], methods=["none"], protocol=PROTOCOL)
"""What Mallory says that it can do."""


class Mallory:
    """A peer that speaks the protocol as it likes; `certs` where the run has credentials."""

    def __init__(self, server: Federation, certs: Path | None = None) -> None:
        self.server = server
        self.certs = certs
        self.channel = grpc.insecure_channel(server.address)
        self.stub = pb_grpc.FederationStub(self.channel)
        self.session = 0

    def join(self, name: str = "mallory", num_examples: int = 100) -> pb.JoinReply:
        data = summary(num_examples=num_examples)
        can = CAN
        reply = self.stub.Join(pb.JoinRequest(client=name, data=data, capabilities=can), timeout=10)
        self.session = reply.session
        return reply

    def wait_for_task(self) -> pb.Train:
        """Poll until there is a training task, so that Mallory is in the cohort."""
        while True:
            request = pb.NextTaskRequest(session=self.session, wait_seconds=5)
            reply = self.stub.NextTask(request, timeout=20)
            if reply.HasField("train"):
                return reply.train

    def submit(self, payload: bytes, **changes: Any) -> str:
        """Send an update and return the outcome, or the reason of a refusal."""
        header = pb.UpdateHeader(
            session=self.session, round=1, version=0, num_examples=100, size=len(payload)
        )
        for name, value in changes.items():
            if isinstance(value, Message):
                getattr(header, name).CopyFrom(value)
            else:
                setattr(header, name, value)
        return outcome(self.stub.SubmitUpdate(chunks(header, payload), timeout=20))

    def close(self) -> None:
        self.channel.close()


def outcome(reply: pb.SubmitReply) -> str:
    if reply.outcome == pb.REFUSED:
        return str(pb.Reason.Name(reply.reason))
    return str(pb.Outcome.Name(reply.outcome))


def chunks(header: pb.UpdateHeader, payload: bytes) -> Iterator[pb.UpdateChunk]:
    yield pb.UpdateChunk(header=header, data=payload[:65536])
    for at in range(65536, len(payload), 65536):
        yield pb.UpdateChunk(data=payload[at : at + 65536])


# ---- payloads ----


def payload(value: float = 0.0, manifest: Manifest = MANIFEST, edit: Any = None) -> bytes:
    """Return a sealed update of zeros whose last value is `value`; `edit` changes its float32s."""
    data = b"".join(b"\0" + bytes(4 * spec.size) for spec in manifest)  # a byte of flags each
    data = data[:-4] + struct.pack("<f", value)
    return sealed(zstd.compress(edit(data) if edit else data), manifest)


def sealed(data: bytes, manifest: Manifest = MANIFEST) -> bytes:
    """Return `data` as the codec's part of a payload whose checksum is right."""
    return seal(varint(len(data)) + data, str(parse_codec(CODEC)).encode() + manifest.digest)


def bomb() -> bytes:
    """64 MB of zeros in some kilobytes."""
    return sealed(zstd.compress(bytes(64 * 2**20), 19))


OTHER = Manifest(tuple(TensorSpec(s.name, (*s.shape[:-1], s.shape[-1] + 1)) for s in MANIFEST))
FEWER = Manifest(MANIFEST.specs[:-1])


# ---- attacks ----

NAN = float("nan")
EVALUATES = {"evaluation": {"holdout": 0.1}}
"""A run whose clients evaluate, besides the server."""

Attack = Callable[[Mallory], str]


def sends(make: Callable[[], bytes], **header: Any) -> Attack:
    """Return an attack that joins, is selected, and sends the payload of `make`."""

    def attack(mallory: Mallory) -> str:
        mallory.join()
        mallory.wait_for_task()
        return mallory.submit(make(), **header)

    return attack


def evaluates(sums: list[float]) -> Attack:
    """Return an attack that sends an update with this evaluation, by a client without data."""
    return sends(payload, after=pb.Evaluation(sums=sums))


def sends_many(make: Callable[[random.Random], bytes], count: int) -> Attack:
    """Return an attack that sends `count` payloads, all of which must have the same outcome."""

    def attack(mallory: Mallory) -> str:
        mallory.join()
        mallory.wait_for_task()
        rng = random.Random(0)
        return " ".join(sorted({mallory.submit(make(rng)) for _ in range(count)}))

    return attack


def flipped(rng: random.Random) -> bytes:
    data = bytearray(payload())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncated(rng: random.Random) -> bytes:
    data = payload()
    return data[: rng.randrange(len(data))]


def negative_count(mallory: Mallory) -> str:
    """Send -50 examples, which protobuf's own classes do not encode."""
    mallory.join()
    mallory.wait_for_task()
    data = payload()
    header = pb.UpdateHeader(session=mallory.session, round=1, version=0, size=len(data))
    minus_50 = b"\x20" + b"\xce" + b"\xff" * 8 + b"\x01"
    raw_header = header.SerializeToString() + minus_50
    chunk = (
        b"\x0a"
        + bytes([len(raw_header)])
        + raw_header
        + pb.UpdateChunk(data=data).SerializeToString()
    )
    call = mallory.channel.stream_unary(
        "/featherfed.v1.Federation/SubmitUpdate",
        request_serializer=None,
        response_deserializer=pb.SubmitReply.FromString,
    )
    return outcome(call(iter([chunk]), timeout=20))


def replays(mallory: Mallory) -> str:
    mallory.join()
    mallory.wait_for_task()
    bad = mallory.submit(payload(float("nan")))
    again = mallory.submit(payload(float("nan")))
    return bad if bad == again else f"{bad} {again}"


def replays_an_old_round(mallory: Mallory) -> str:
    mallory.join()
    mallory.wait_for_task()
    while mallory.server.coordinator.newest_version < 1:
        time.sleep(0.05)
    return mallory.submit(payload())


def other_run(mallory: Mallory) -> str:
    """Use a session that this server never opened."""
    mallory.join()
    mallory.wait_for_task()
    return refused(lambda: mallory.submit(payload(), session=mallory.session ^ 1))


def refused(call: Callable[[], object]) -> str:
    """Return the reason in the status that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return (error.details() or error.code().name).split(":")[0]
    return "answered"


def dies(after: str) -> Attack:
    """Return an attack that leaves without a word after the step `after` of a session."""

    def attack(mallory: Mallory) -> str:
        mallory.join()
        if after == "join":
            return "survived"
        mallory.wait_for_task()
        request = pb.FetchModelRequest(session=mallory.session, version=0)
        if after == "download begun":
            next(iter(mallory.stub.FetchModel(request, timeout=10)))
        elif after == "download":
            list(mallory.stub.FetchModel(request, timeout=10))
        elif after == "upload begun":
            hang = threading.Event()
            call = mallory.stub.SubmitUpdate.future(_half(mallory.session, hang), timeout=20)
            time.sleep(0.2)
            call.cancel()
            hang.set()
        mallory.close()
        return "survived"

    return attack


def _half(session: int, hang: threading.Event) -> Iterator[pb.UpdateChunk]:
    header = pb.UpdateHeader(session=session, round=1, version=0, num_examples=100, size=9999)
    yield pb.UpdateChunk(header=header, data=bytes(100))
    hang.wait(20)


def joins_a_thousand_times(mallory: Mallory) -> str:
    """Join a thousand times; the last session must work."""
    told = {refused(mallory.join) for _ in range(1000)}
    request = pb.NextTaskRequest(session=mallory.session)
    told.add(refused(lambda: mallory.stub.NextTask(request, timeout=10)))
    return "answered" if told <= {"answered", "BUSY"} else " ".join(sorted(told))


def crawls(mallory: Mallory) -> str:
    """Upload an update byte by byte, with pauses of seconds."""
    mallory.join()
    mallory.wait_for_task()

    def slowly() -> Iterator[pb.UpdateChunk]:
        header = pb.UpdateHeader(session=mallory.session, round=1, num_examples=100, size=9999)
        yield pb.UpdateChunk(header=header, data=b"x")
        time.sleep(3)
        yield pb.UpdateChunk(data=b"x")

    return refused(lambda: mallory.stub.SubmitUpdate(slowly(), timeout=20))


def turns_the_clock(seconds: float) -> Attack:
    """Return an attack that sets the clock of server and clients (one process) during a round."""

    def attack(mallory: Mallory) -> str:
        mallory.join()
        mallory.wait_for_task()
        real = time.time

        def turned() -> float:
            return real() + seconds

        with mock.patch("time.time", turned):
            time.sleep(DEADLINE)
        return "survived"

    return attack


def fills_the_disk(mallory: Mallory) -> str:
    """Let the server's database grow by no page for a while."""
    mallory.join()
    mallory.wait_for_task()
    store = mallory.server.store
    store._database.run(f"PRAGMA max_page_count = {store._database.run('PRAGMA page_count')[0][0]}")
    time.sleep(DEADLINE)
    store._database.run("PRAGMA max_page_count = 1000000")
    return "survived"


# ---- who does not belong ----


def joins_with(make: Callable[[Path], Credentials | None], name: str = "mallory") -> Attack:
    """Join with these credentials, made in a scratch folder."""

    def attack(mallory: Mallory) -> str:
        assert mallory.certs is not None
        transport = GrpcTransport(mallory.server.address, 20, make(mallory.certs))
        data, can = summary(), CAN
        try:
            transport.join(pb.JoinRequest(client=name, data=data, capabilities=can))
        except Rejected as error:
            return str(error).partition(": ")[2]
        except Unreachable as error:
            return str(error).partition(": ")[2]
        finally:
            transport.close()
        return "answered"

    return attack


def enrolled(certs: Path) -> Credentials:
    return load_credentials(certs / "clients" / "mallory")


def without_token(certs: Path) -> Credentials:
    return replace(enrolled(certs), token=None)


def of_another_authority(certs: Path) -> Credentials:
    """Return a certificate issued by Mallory's own authority, with the right ca.pem."""
    other = Authority(certs.parent / "other")
    other.create([])
    other.enrol(["mallory"])
    folder = other.folder / "clients" / "mallory"
    shutil.copy(certs / "ca.pem", folder / "ca.pem")
    return unchecked(folder)


def expired(certs: Path) -> Credentials:
    """Return an expired certificate of the right authority."""
    Authority(certs).enrol(["mallory"], days=-1 / 86400, renew=True)
    return unchecked(certs / "clients" / "mallory")


def unchecked(folder: Path) -> Credentials:
    """Return credentials without the client's own checks of its files."""
    parts = [(folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client-key.pem")]
    return Credentials(folder, *parts, token=(folder / "token").read_text("utf-8").strip())


def revoked(certs: Path) -> Credentials:
    Authority(certs).revoke(["mallory"])
    return enrolled(certs)


@dataclass(frozen=True)
class Fault:
    """An attack, and the reason or text (or a part of it) that the server must answer with.

    `alone`: Mallory is not in the cohort, and the honest clients train until the attack is over.
    """

    name: str
    expected: str
    attack: Attack
    peers: str = ""
    """What peers do, as far as it was measured (Flower 1.41) or read in their source."""
    alone: bool = False
    secure: bool = False
    """Whether the run has credentials."""
    slack: float = SLACK
    """Seconds beyond the deadline in which the round must have closed."""
    changes: dict[str, Any] = field(default_factory=dict)


FAULTS = [
    Fault(
        "NaN in one value",
        "NON_FINITE",
        sends(lambda: payload(float("nan"))),
        "Flower: global model is NaN to the end",
    ),
    Fault("infinity in one value", "NON_FINITE", sends(lambda: payload(float("inf")))),
    Fault("values that no training gives", "OUT_OF_RANGE", sends(lambda: payload(3e38))),
    Fault(
        "wrong shapes", "MALFORMED", sends(lambda: payload(manifest=OTHER)), "Flower: run aborts"
    ),
    Fault(
        "wrong shapes under a right checksum",
        "MALFORMED",
        sends(lambda: payload(edit=lambda d: d + d[:260])),
    ),
    Fault(
        "a tensor is missing",
        "MALFORMED",
        sends(lambda: payload(edit=lambda d: d[:-256])),
        "Flower: run aborts",
    ),
    Fault("a tensor too many", "MALFORMED", sends(lambda: payload(edit=lambda d: d + bytes(256)))),
    Fault("a model with a tensor less", "MALFORMED", sends(lambda: payload(manifest=FEWER))),
    Fault("0 examples", "BAD_EXAMPLE_COUNT", sends(payload, num_examples=0), "Flower: accepted"),
    Fault("-50 examples", "BAD_EXAMPLE_COUNT", negative_count, "Flower: accepted"),
    Fault("4 billion examples", "BAD_EXAMPLE_COUNT", sends(payload, num_examples=2**32 - 1)),
    Fault("an evaluation of NaN", "MALFORMED", evaluates([1, NAN, 1, 1]), changes=EVALUATES),
    Fault("an evaluation below 0", "MALFORMED", evaluates([1, -1, 1, 1]), changes=EVALUATES),
    Fault("too long an evaluation", "MALFORMED", evaluates([1] * 10_000), changes=EVALUATES),
    Fault("an evaluation of others' data", "MALFORMED", evaluates([9, 1, 1, 1]), changes=EVALUATES),
    Fault("an empty update", "MALFORMED", sends(lambda: b"")),
    Fault("50 truncated payloads", "MALFORMED", sends_many(truncated, 50)),
    Fault("50 payloads with a flipped bit", "MALFORMED", sends_many(flipped, 50)),
    Fault("a decompression bomb", "MALFORMED", sends(bomb), "NVFlare: bz2 without a limit"),
    Fault("more bytes than the codec can need", "TOO_LARGE", sends(lambda: bytes(10**6))),
    Fault("more bytes than announced", "MALFORMED", sends(payload, size=10)),
    Fault(
        "a wrong base version",
        "WRONG_VERSION",
        sends(payload, version=7),
        "nncodec: drifts silently",
    ),
    Fault("the same again", "NON_FINITE", replays),
    Fault("an update for a closed round", "LATE", replays_an_old_round),
    Fault("an update for a round to come", "LATE", sends(payload, round=2)),
    Fault("another run's session", "UNKNOWN_SESSION", other_run),
    *[
        Fault(
            f"dies after: {step}",
            "survived",
            dies(step),
            "Flower: waits for the whole timeout (3600 s)",
            step == "join",
        )
        for step in ("join", "task", "download begun", "download", "upload begun")
    ],
    Fault(
        "an upload that stands still",
        "TOO_SLOW",
        crawls,
        changes={"limits": {"stall_seconds": 0.5}},
    ),
    Fault("1,000 joins", "answered", joins_a_thousand_times, alone=True),
    Fault("the clock goes forward by a day", "survived", turns_the_clock(86400)),
    # Until the clock is right again, calls fail at once: gRPC reckons their deadlines by it.
    Fault("the clock goes back by an hour", "survived", turns_the_clock(-3600), slack=15),
    Fault("the server's disk is full for a while", "survived", fills_the_disk, slack=15),
    Fault("no token", "BAD_TOKEN", joins_with(without_token), alone=True, secure=True),
    Fault("a revoked client", "BAD_TOKEN", joins_with(revoked), alone=True, secure=True),
    Fault(
        "another's name", "WRONG_IDENTITY", joins_with(enrolled, "anna"), alone=True, secure=True
    ),
    Fault(
        "a certificate of another authority",
        "was not issued by an authority in ca.pem",
        joins_with(of_another_authority),
        alone=True,
        secure=True,
    ),
    Fault("an expired certificate", "has expired", joins_with(expired), alone=True, secure=True),
    Fault(
        "plaintext to a TLS port",
        "the server speaks TLS, and this client does not",
        joins_with(lambda certs: None),
        alone=True,
        secure=True,
    ),
]


@dataclass(frozen=True)
class Result:
    """The result of injecting a fault."""

    told: str
    seconds: float
    """From the opening of the attacked round to its close."""
    unchanged: bool
    """Whether the honest clients ended with the model of the undisturbed run."""
    recorded: dict[str, int]
    """Refusals in metrics.json by reason."""


def face(fault: Fault, directory: Path) -> Result:
    """Run two rounds with four honest clients and Mallory."""
    certs = _certificates(directory / "certs") if fault.secure else None
    security = {"security": {"credentials": str(certs)}} if certs else {}
    with running(directory / "run", fault.alone, **security, **fault.changes) as server:
        mallory = Mallory(server, certs)
        told: list[str] = []
        over = threading.Event()

        def attack() -> None:
            told.append(fault.attack(mallory))
            over.set()

        thread = threading.Thread(target=attack)
        thread.start()
        held = server.run_clients(*honest(server, certs, over if fault.alone else None))
        thread.join(30)
        mallory.close()
        data = metrics.collect(server.store, server.settings, TASK, MANIFEST, {})
    want = reference(directory / "reference", fault.alone)
    recorded: dict[str, int] = {}
    for entry in (r for round_ in data["rounds"] for r in round_["refused"]):
        recorded[entry["reason"]] = recorded.get(entry["reason"], 0) + entry.get("count", 1)
    same = [h.digest for h in held] == [want] * len(held)
    return Result(told[0] if told else "hangs", data["rounds"][0]["seconds"], same, recorded)


@contextlib.contextmanager
def running(directory: Path, alone: bool, **changes: Any) -> Iterator[Federation]:
    directory.mkdir(parents=True)
    clients = {
        "minimum": 4 if alone else 5, "quorum": 0.8, "deadline": DEADLINE, "patience": 1,
    }  # fmt: skip
    run = {
        "rounds": 2, "clients": clients, "compression": {"uplink": CODEC, "downlink": CODEC},
        "server": {"port": 0, "linger": 1}, **changes,
    }  # fmt: skip
    server = Federation(directory, settings(directory, **run)).start()
    try:
        yield server
    finally:
        server.close()


def honest(
    server: Federation, certs: Path | None = None, over: threading.Event | None = None
) -> list[Any]:
    """Return four clients; those of a run with an event `over` train until it is set."""

    def wait(_: pb.Train) -> None:
        if over is not None:
            over.wait(60)

    sessions = []
    for name, value in HONEST.items():
        proof = load_credentials(certs / "clients" / name) if certs else None
        transport = GrpcTransport(server.address, 20, proof)
        sessions.append(server.client(name, trainer=Pull(value, wait), transport=transport))
    return sessions


def _certificates(folder: Path) -> Path:
    authority = Authority(folder)
    authority.create([])
    authority.enrol([*HONEST, "mallory"])
    return folder


_references: dict[bool, bytes] = {}


def reference(directory: Path, alone: bool) -> bytes:
    """Return the digest of the undisturbed run; Mallory is absent, or selected and silent."""
    if alone not in _references:
        with running(directory, alone) as server:
            if not alone:
                silent = Mallory(server)
                silent.join()
                threading.Thread(target=silent.wait_for_task).start()
            held: list[HeldModel] = server.run_clients(*honest(server))
            _references[alone] = held[0].digest
    return _references[alone]


def main() -> int:
    """Print the result of every fault; return 1 if anything went wrong."""
    failed = 0
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as scratch:
            result = face(fault, Path(scratch))
        good = fault.expected in result.told and result.unchanged
        failed += not good
        facts = f"{result.told[:60]:22} {result.seconds:5.2f} s  {result.recorded}"
        print(f"{'ok ' if good else 'BAD'} {fault.name:40} {facts}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
