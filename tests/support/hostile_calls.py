"""Calls that no honest client makes, against a live server, from a seed; one kind in each function.

The attacker is known to the server: it has joined, is in the round's cohort and could make a right
update, and sends everything but that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from support.kills import KillableProcesses, free_port, numpy_processes
from support.load import memory_mb
from support.models import EXAMPLES, summary
from support.numpy_federation import Spec

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import abilities, parse_codec
from featherfed.edge_client.plan import manifest_of
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.proto.protocol import PROTOCOL
from featherfed.server.coordinator.data_check import MAX_EXAMPLES

SERVICE = pb.DESCRIPTOR.services_by_name["Federation"]
METHODS = {method.name: method for method in SERVICE.methods}
HONEST = 3
FAILURES = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
"""Status codes of a server whose code failed on a call."""

LOCAL = "Internal error from Core"
"""Details of the error that our own gRPC raises when a stream breaks while we are sending."""

_INTEGERS = (0, 1, 2, 3, 7, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_FLOATS = (0.0, -1.0, 1e-300, 1e38, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "c0", "evil", "..", "/etc/passwd", "a" * 70, "x\x00y", "\u202e", "'; --", "int8")

_NO_TEXT: Any = b"/\xff\xfe\xfd"  # gRPC's types say that a method has a str, its code takes bytes
_WATCHES: tuple[tuple[Any, ...], ...] = (
    ("/grpc.health.v1.Health/Check", b"\x0a\x04nope"),
    ("/grpc.health.v1.Health/Watch", b""),
    ("/grpc.health.v1.Health/Watch", b"\x0a\x04nope"),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"\x3a\x00", b"\x3a\x00"),
)
"""Method and requests of calls that last, of services that are not ours."""


class Attacker:
    """A client of the round's cohort that sends everything but a right update."""

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self.rng = random.Random(seed)
        self.codes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.slowest = 0.0

    async def join(self) -> None:
        """Join as `evil`, wait for the round, and make a valid update for attacks to spoil."""
        self._channel = grpc.aio.insecure_channel(self._address)
        stub = pb_grpc.FederationStub(self._channel)
        self._hello = pb.JoinRequest(
            client="evil",
            data=summary(),
            capabilities=pb.Capabilities(
                stages=sorted(abilities()), methods=["none"], protocol=PROTOCOL
            ),
        )
        reply = await stub.Join(self._hello)
        self._session = reply.session
        while True:
            request = pb.NextTaskRequest(session=self._session, wait_seconds=20)
            task = await stub.NextTask(request)
            if task.HasField("train"):
                break
        manifest = manifest_of(reply.plan)
        start = initial_weights(manifest, reply.plan.seed)
        slots = task.train.slots
        shared = start_round(manifest, start, 0).context(reply.plan.seed, 1, slots, None)
        self._payload = encode_update(
            parse_codec(task.train.codec),
            manifest,
            [np.full(w.shape, 0.01, np.float32) for w in start],
            masks=shared.masks,
            context=shared.for_slot(task.train.slot),
        ).payload

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def attack(self, calls: int, side_by_side: int = 32) -> None:
        """Make `calls` hostile calls; raise RuntimeError if the server fails on one."""
        numbers = iter(range(calls))
        kinds = (
            self._bytes, self._bytes, self._values, self._values, self._values, self._update,
            self._update, self._broken_stream, self._no_method, self._silence, self._watch,
        )  # fmt: skip

        async def work() -> None:
            for _ in numbers:
                kind = self.rng.choice(kinds)
                self.kinds[kind.__name__.strip("_")] += 1
                begin = time.monotonic()
                try:
                    await asyncio.wait_for(kind(), 60)
                    code = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    # If the server answers before all is sent, our own gRPC raises an error.
                    ours = error.details() == LOCAL
                    code = grpc.StatusCode.CANCELLED if ours else error.code()
                    if code in FAILURES:
                        raise RuntimeError(f"{kind.__name__}: {error}") from error
                except asyncio.CancelledError:
                    code = grpc.StatusCode.CANCELLED
                self.codes[code.name] += 1
                self.slowest = max(self.slowest, time.monotonic() - begin)

        await asyncio.gather(*(work() for _ in range(side_by_side)))

    # ---- kinds ----

    async def _bytes(self) -> None:
        """Send random bytes, or a mutated message."""
        name = self.rng.choice([*METHODS])
        if self.rng.random() < 0.3:
            data = self.rng.randbytes(self.rng.choice((0, 1, 10, 100, 5000, 300_000)))
        else:
            data = self._mutated(self._message(METHODS[name].input_type).SerializeToString())
        await self._raw(name, [data])

    async def _values(self) -> None:
        """Send a message that parses, with hostile values."""
        name = self.rng.choice([*METHODS])
        message = self._message(METHODS[name].input_type)
        await self._raw(name, [message.SerializeToString()])

    async def _update(self) -> None:
        """Send an update with one fault."""
        header = pb.UpdateHeader(
            session=self._session, round=1, num_examples=EXAMPLES, size=len(self._payload)
        )
        payload, cut = self._payload, CHUNK
        wrong = self.rng.choice(("round", "version", "num_examples", "size", "payload", "chunks"))
        if wrong == "payload":
            payload = self._mutated(payload) or b"x"
            header.size = len(payload)
            if payload == self._payload:
                return
        elif wrong == "chunks":
            cut = 1 + len(payload) // 3
            payload += self.rng.randbytes(1 + self.rng.randrange(100))
        else:
            right = getattr(header, wrong)
            value = self.rng.choice([i for i in _INTEGERS if i < 2**32 and i != right])
            if wrong == "num_examples" and 1 <= value <= MAX_EXAMPLES:
                value = 0
            setattr(header, wrong, value)
        messages = [pb.UpdateChunk(header=header, data=payload[:cut])]
        messages += [
            pb.UpdateChunk(data=payload[at : at + cut]) for at in range(cut, len(payload), cut)
        ]
        replies = await self._raw("SubmitUpdate", [m.SerializeToString() for m in messages])
        reply = pb.SubmitReply.FromString(replies[0])
        if reply.outcome != pb.REFUSED:
            raise RuntimeError(f"{wrong}: {header}: {reply}")
        self.reasons[pb.Reason.Name(reply.reason)] += 1

    async def _broken_stream(self) -> None:
        """Start a stream and break it off, before or after the server's first answer."""
        name = self.rng.choice(("SubmitUpdate", "FetchModel", "FetchRelease", "FetchStep"))
        messages = [
            self._message(METHODS[name].input_type).SerializeToString()
            for _ in range(self.rng.randint(1, 4) if name == "SubmitUpdate" else 1)
        ]
        task = asyncio.ensure_future(self._raw(name, messages, stall=True))
        await asyncio.sleep(self.rng.random() * 0.01)
        task.cancel()
        try:
            await task
        except grpc.aio.AioRpcError as error:
            if error.details() != LOCAL:
                raise

    async def _silence(self) -> None:
        """Begin a call of any method and send nothing, not even that this was all."""
        await self._break_off(f"/{SERVICE.full_name}/{self.rng.choice([*METHODS])}", [])

    async def _watch(self) -> None:
        """Begin a call of health checking or reflection that lasts, with garbage or with sense."""
        path, *requests = self.rng.choice(_WATCHES)
        await self._break_off(path, self.rng.choice((requests, [self.rng.randbytes(9)], [])))

    async def _break_off(self, path: str, messages: Sequence[bytes]) -> None:
        """Make a call, wait for an answer a moment, and break it off."""

        async def stream() -> AsyncIterator[bytes]:
            for message in messages:
                yield message
            await asyncio.sleep(10)

        call = self._channel.stream_stream(path)(stream(), timeout=20)
        task = asyncio.ensure_future(call.read())
        await asyncio.wait({task}, timeout=self.rng.random() * 0.05)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _no_method(self) -> None:
        """Call a method that does not exist, or one of another kind."""
        path = self.rng.choice(
            ("/", "//", "/nope/Join", "/featherfed.v1.Federation/Nope", "/" + "x" * 5000, _NO_TEXT)
        )
        await self._channel.unary_unary(path)(self.rng.randbytes(20), timeout=20)

    # ---- helpers ----

    async def _raw(self, name: str, messages: Sequence[bytes], stall: bool = False) -> list[bytes]:
        method = METHODS[name]
        path = f"/{SERVICE.full_name}/{name}"
        wait = self.rng.choice((0.5, 5.0)) if name in ("NextTask", "FetchRelease") else 50

        async def stream() -> AsyncIterator[bytes]:
            for message in messages:
                yield message
            if stall:
                await asyncio.sleep(10)

        if method.client_streaming:
            return [await self._channel.stream_unary(path)(stream(), timeout=wait)]
        if method.server_streaming:
            call = self._channel.unary_stream(path)(messages[0], timeout=wait)
            return [reply async for reply in call]
        return [await self._channel.unary_unary(path)(messages[0], timeout=wait)]

    def _mutated(self, data: bytes) -> bytes:
        rng, out = self.rng, bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(out) + 1)
            match rng.randrange(4):
                case 0:
                    out[at:at] = rng.randbytes(rng.randint(1, 8))
                case 1:
                    del out[at : at + rng.randint(1, 8)]
                case 2:
                    out[at : at + 1] = bytes([rng.randrange(256)])
                case _:
                    del out[at:]
        return bytes(out)

    def _message(self, descriptor: Any) -> Any:
        """Return a message some of whose fields have invalid values."""
        if descriptor is pb.JoinRequest.DESCRIPTOR and self.rng.random() < 0.5:
            message = pb.JoinRequest()
            message.CopyFrom(self._hello)
            message.client = f"evil-{self.rng.randrange(50)}"
            return message
        message = getattr(pb, descriptor.name)()
        for field in descriptor.fields:
            if self.rng.random() < 0.3:
                continue
            repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
            values = [self._value(field) for _ in range(self.rng.randrange(5) if repeated else 1)]
            if field.message_type:
                for value in values:
                    target = getattr(message, field.name)
                    (target.add() if repeated else target).CopyFrom(value)
            elif repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
        return message

    def _value(self, field: Any) -> Any:
        rng = self.rng
        if field.message_type:
            return self._message(field.message_type)
        if field.cpp_type == field.CPPTYPE_STRING:
            if field.type == field.TYPE_BYTES:
                return rng.randbytes(rng.choice((0, 1, 8, 32, 1000, 70_000)))
            return rng.choice((*_TEXTS, "é" * rng.randrange(2000)))
        if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
            return rng.choice(_FLOATS)
        if field.cpp_type == field.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if field.name == "session":  # else hardly a call gets past the check of its session
            return rng.choice((self._session, self._session, self._session, 0, rng.getrandbits(64)))
        if field.name == "wait_seconds":
            return rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2**32 - 1))
        if field.cpp_type == field.CPPTYPE_ENUM:
            return rng.choice((0, 1, 2, 2**31 - 1))
        bits = 64 if field.cpp_type in (field.CPPTYPE_UINT64, field.CPPTYPE_INT64) else 32
        value = rng.choice(_INTEGERS) % 2**bits
        signed = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
        return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


CHUNK = 64 * 1024


def spec() -> Spec:
    """Return a round that is open until three honest clients of four have reported."""
    settings = {
        "name": "hostile",
        "rounds": 1,
        "server": {"port": free_port(), "linger": 2},  # for the attacker, who fetches nothing
        "clients": {"minimum": HONEST + 1, "quorum": 0.75, "deadline": 1, "patience": 3600},
        "limits": {"requests_per_second": 1e6},
    }
    return Spec(settings, hold_last_round=True)


def run_under_attack(directory: Path, calls: int, seed: int = 1) -> dict[str, Any]:
    """Run a federation of honest clients and make `calls` hostile calls on its server.

    Returns counts of calls and status codes, the slowest call and the server's memory.
    """
    with numpy_processes(directory, spec(), HONEST) as run:
        address = directory / "server.address"
        while not address.exists():
            time.sleep(0.02)
        attacker = Attacker(address.read_text("utf-8"), seed)
        seen = asyncio.run(_attack(attacker, run, calls, directory))
        run.wait(60)
    return {
        "calls": calls,
        "codes": dict(attacker.codes.most_common()),
        "kinds": dict(attacker.kinds.most_common()),
        "refused_updates": dict(attacker.reasons.most_common()),
        "slowest_seconds": round(attacker.slowest, 2),
        **seen,
    }


async def _attack(
    attacker: Attacker, run: KillableProcesses, calls: int, directory: Path
) -> dict[str, Any]:
    server = run.running["server"].pid
    await attacker.join()
    begin = time.monotonic()
    await attacker.attack(calls // 5)
    before = memory_mb(server)["resident_mb"]  # after a fifth: what is loaded late is loaded
    await attacker.attack(calls - calls // 5)
    after = memory_mb(server)["resident_mb"]
    seconds = round(time.monotonic() - begin, 1)
    await attacker.close()
    assert run.running["server"].poll() is None, run.log("server")
    (directory / "over").touch()
    return {"seconds": seconds, "before_mb": before, "after_mb": after}
