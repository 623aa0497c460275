"""Many clients in one process that speak the real protocol, each over a connection of its own."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tomli_w
from support.kills import free_port
from support.models import CLASSES, EXAMPLES, MODELS, SHAPE, summary
from support.numpy_federation import Spec
from support.processes import program

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import abilities, parse_codec
from featherfed.edge_client.plan import manifest_of
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.transport import CHUNK_BYTES
from featherfed.edge_client.versions import apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.proto.protocol import PROTOCOL
from featherfed.tasks.task import image_task

BUSY = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
)
"""What clients try again after."""


@dataclass
class ManyClients:
    """`count` clients of a run of `rounds` rounds, and their measurements."""

    address: str
    count: int
    rounds: int = 1
    shape: tuple[int, ...] = SHAPE
    seconds: dict[str, list[float]] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    payload: int = 0
    """Bytes of the largest update."""
    on_round: Callable[[int], None] = lambda round_: None
    """Called when all have the model that a round starts from, and once more at the end."""
    _plan: tuple[Manifest, pb.Plan] | None = None
    _update: list[Array] | None = None
    _held: dict[int, HeldModel] = field(default_factory=dict)
    _sent: dict[int, tuple[list[bytes], bytes]] = field(default_factory=dict)

    async def run(self) -> None:
        """Run all clients from joining to the final model; raise if any of them fails."""
        self._ready = asyncio.Barrier(self.count)
        await asyncio.gather(*(self._client(f"c{number:05}") for number in range(self.count)))

    async def _client(self, name: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all would share one connection
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            stub = pb_grpc.FederationStub(channel)
            request = pb.JoinRequest(
                client=name,
                data=summary(image_task(self.shape, CLASSES)),
                capabilities=pb.Capabilities(
                    stages=sorted(abilities()), methods=["none"], protocol=PROTOCOL
                ),
            )
            reply = await self._call("join", lambda: stub.Join(request))
            self._plan = self._plan or (manifest_of(reply.plan), reply.plan)
            for round_ in range(1, self.rounds + 1):
                task = (await self._task(stub, reply.session, "train")).train
                await self._fetch(stub, reply.session, task.version, task.digest)
                payload = self._encode(task)
                # The worst case: all send at once.
                if await self._ready.wait() == 0:
                    self.on_round(round_)
                header = pb.UpdateHeader(
                    session=reply.session, round=round_, version=task.version,
                    num_examples=EXAMPLES, size=len(payload),
                )  # fmt: skip
                ack = await self._call("submit", functools.partial(_submit, stub, header, payload))
                if ack.outcome not in (pb.ACCEPTED, pb.DUPLICATE):
                    raise RuntimeError(f"{name}: {ack}")
            end = (await self._task(stub, reply.session, "finished")).finished
            await self._fetch(stub, reply.session, end.version, end.digest)
            if await self._ready.wait() == 0:
                self.on_round(self.rounds + 1)

    async def _task(self, stub: Any, session: int, wanted: str) -> pb.NextTaskReply:
        request = pb.NextTaskRequest(session=session, wait_seconds=20)
        while True:
            task = await self._call(f"task {wanted}", lambda: stub.NextTask(request))
            if task.HasField(wanted):
                return task

    async def _fetch(self, stub: Any, session: int, version: int, digest: bytes) -> None:
        """Download a version, which the first client to have it decodes for all."""
        request = pb.FetchModelRequest(session=session, version=version)
        before = self._held.get(version - 1)
        if before is not None:
            request.have_version, request.have_digest = before.version, before.digest[:8]

        async def fetch() -> tuple[list[pb.Link], bytes]:
            links, data = [], []
            async for chunk in stub.FetchModel(request):
                links += chunk.links
                data.append(chunk.data)
            return links, b"".join(data)

        links, data = await self._call("fetch", fetch)
        sent = [link.SerializeToString() for link in links], data
        if self._sent.setdefault(version, sent) != sent or links[-1].digest != digest:
            raise RuntimeError(f"a client was sent another version {version} than the others")
        if version not in self._held:
            assert self._plan is not None
            manifest, plan = self._plan
            self._held[version] = apply_links(manifest, plan.seed, before, links, data)

    def _encode(self, task: pb.Train) -> bytes:
        assert self._plan is not None
        (manifest, plan), held = self._plan, self._held[task.version]
        if self._update is None:
            rng = np.random.default_rng(0)
            self._update = [
                rng.standard_normal(w.shape, np.float32) * np.float32(0.01) for w in held.weights
            ]
        codec = parse_codec(task.codec)
        if not codec.traits.keyed and self.payload:
            return self._unkeyed
        start = start_round(manifest, held.weights, task.sparsity)
        shared = start.context(plan.seed, task.round, task.slots, held.allocation)
        encoded = encode_update(
            codec, manifest, self._update, masks=shared.masks, context=shared.for_slot(task.slot)
        )
        self._unkeyed = encoded.payload
        self.payload = max(self.payload, len(encoded.payload))
        return encoded.payload

    async def _call(self, what: str, call: Any) -> Any:
        begin = time.perf_counter()
        for attempt in range(100):
            try:
                found = await call()
                self.seconds.setdefault(what, []).append(time.perf_counter() - begin)
                return found
            except grpc.aio.AioRpcError as error:
                if error.code() not in BUSY:
                    raise
                self.retries[f"{what}: {error.code().name}"] += 1
                await asyncio.sleep(min(5, 0.1 * 2**attempt) * np.random.random())
        raise RuntimeError(f"{what}: refused for ever")


def _submit(stub: Any, header: pb.UpdateHeader, payload: bytes) -> Any:
    return stub.SubmitUpdate(_chunks(header, payload))


async def _chunks(header: pb.UpdateHeader, payload: bytes) -> Any:
    yield pb.UpdateChunk(header=header, data=payload[:CHUNK_BYTES])
    for at in range(CHUNK_BYTES, len(payload), CHUNK_BYTES):
        yield pb.UpdateChunk(data=payload[at : at + CHUNK_BYTES])


def quantile(values: list[float], q: float) -> float:
    """Return a quantile of seconds, in milliseconds."""
    return round(float(np.quantile(values, q)) * 1000, 1)


def memory_mb(pid: int) -> dict[str, float]:
    """Return the peak and the present memory of a process in MB (10**6 bytes)."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {
        name: round(int(found[field].split()[0]) * 1024 / 1e6, 1)
        for name, field in (("peak_mb", "VmHWM"), ("resident_mb", "VmRSS"))
    }


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its ended threads have used."""
    # The kernel's clock of a process, as clock_getcpuclockid gives it: nanoseconds, not ticks.
    return time.clock_gettime((~pid << 3) | 2)


def measure_load(
    directory: Path,
    count: int,
    model: str,
    uplink: str = "balanced",
    rounds: int = 1,
    real: bool = False,
) -> dict[str, Any]:
    """Run rounds of `count` clients on a server of its own; return times, bytes and memory.

    The server's evaluator needs no data and hardly any time (support.evaluator), unless it is to
    be `real`: `featherfed serve`, which evaluates the model `cnn` with Keras on Fashion-MNIST.
    """
    settings = {
        "name": "load", "rounds": rounds, "server": {"port": free_port(), "stay": True},
        "clients": {"minimum": count, "quorum": 1.0, "deadline": 3600, "heartbeat": 0},
        "compression": {"uplink": uplink},
        # All come from one address, which may make so many calls of a thousand clients.
        "limits": {"requests_per_second": max(20, count / 50)},
    }  # fmt: skip
    directory.mkdir(parents=True)
    if real:
        run = {**settings, "output": ".", "evaluation": {"dataset": "fashion-mnist"}}
        (directory / "run.toml").write_text(tomli_w.dumps(run), "utf-8")
        command = [sys.executable, "-m", "featherfed.cli.main", "serve", "run.toml"]
        shape: tuple[int, ...] = (28, 28, 1)
    else:
        Spec(settings, model).write(directory)
        command = program("numpy_federation", "server", str(directory))
        shape = SHAPE
    with (directory / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    used: list[tuple[float, float]] = []

    def on_round(round_: int) -> None:
        used.append((time.perf_counter(), cpu_seconds(server.pid)))

    try:
        address = directory / "server.address"
        while not address.exists():
            assert server.poll() is None, (directory / "server.log").read_text("utf-8")
            time.sleep(0.05)
        idle = memory_mb(server.pid)["peak_mb"]
        told = address.read_text("utf-8").strip()
        clients = ManyClients(told, count, rounds, shape, on_round=on_round)
        begin, cpu = time.perf_counter(), cpu_seconds(server.pid)
        asyncio.run(clients.run())
        seconds = time.perf_counter() - begin
        memory, cpu = memory_mb(server.pid), cpu_seconds(server.pid) - cpu
        server.terminate()
        assert server.wait(120) == 0, (directory / "server.log").read_text("utf-8")
    finally:
        server.kill()
        server.wait()
    acks = clients.seconds["submit"]
    (first, first_cpu), (last, last_cpu) = used[0], used[-1]
    return {
        "clients": count,
        "rounds": rounds,
        "parameters": MODELS[model].num_values,
        "uplink": uplink,
        "evaluator": "keras" if real else "stand-in",
        "update_bytes": clients.payload,
        "seconds": round(seconds, 1),
        "seconds_a_round": round((last - first) / rounds, 2),
        "server_cpu_ms_a_client": round(1000 * cpu / count, 2),
        "server_cpu_ms_a_client_and_round": round(
            1000 * (last_cpu - first_cpu) / count / rounds, 2
        ),
        "ack_p50_ms": quantile(acks, 0.5),
        "ack_p99_ms": quantile(acks, 0.99),
        "join_p99_ms": quantile(clients.seconds["join"], 0.99),
        "retries": dict(clients.retries),
        "idle_mb": idle,
        **memory,
    }


if __name__ == "__main__":
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        where, (count, model, *more) = Path(scratch) / "run", sys.argv[1:]
        uplink, rounds = (more + ["balanced", "1"][len(more) :])[:2]
        print(json.dumps(measure_load(where, int(count), model, uplink, int(rounds))))
