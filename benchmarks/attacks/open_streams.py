"""One enrolled client opens 20,000 calls that say nothing, while others run their rounds.

Four kinds in equal parts: Health.Watch, reflection, SubmitUpdate without a message, and GetStatus
without one; what the server ends is begun again. It has its default limits and real credentials.
Then one call of a method whose name is no text.
"""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from support.clients import profile
from support.load import memory_mb
from support.models import EXAMPLES
from support.numpy_federation import RandomWalk, Spec
from support.processes import program
from support.raw_calls import EMPTY_MESSAGE, RawCalls, RawConnection

from featherfed.edge_client.credentials import load_credentials
from featherfed.edge_client.errors import ClientError, Unreachable
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.session import Session
from featherfed.edge_client.state import ClientState
from featherfed.proto import federation_pb2 as pb
from featherfed.server.access.authority import Authority

CALLS = 21_000
HONEST = ("attic", "cellar", "kitchen")
KINDS: dict[str, bytes | None] = {
    "/grpc.health.v1.Health/Watch": EMPTY_MESSAGE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": None,
    "/featherfed.v1.Federation/SubmitUpdate": None,
    "/featherfed.v1.Federation/GetStatus": None,
}
SECONDS = 15.0
"""How long honest clients try to finish their run beside the attack."""


def measure(scratch: Path) -> dict[str, Any]:
    """Return what the attack does to other clients' calls, to memory, and at the end."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    authority = Authority(scratch / "certs")
    authority.create([])
    authority.enrol([*HONEST, "evil", "probe"])
    undisturbed, _ = _run(scratch / "undisturbed", authority.folder, 0)
    digest, figures = _run(scratch / "attacked", authority.folder, CALLS)
    return {
        **figures,
        "run_ends_with_the_same_digest": digest == undisturbed,
        "answers_after_a_method_name_that_is_no_text": _survives(scratch / "odd", authority.folder),
    }


@contextmanager
def _server(directory: Path, certs: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Spec]]:
    """Run a server with credentials; give its process, address and spec."""
    directory.mkdir()
    spec = Spec({
        "name": "streams", "rounds": 3, "server": {"port": 0, "stay": True},
        "clients": {"minimum": len(HONEST), "quorum": 1.0, "deadline": 600, "patience": 600},
        "security": {"credentials": str(certs)},
    })  # fmt: skip
    spec.write(directory)
    with (directory / "server.log").open("wb") as out:
        command = program("numpy_federation", "server", str(directory))
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while not (directory / "server.address").exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield server, (directory / "server.address").read_text("utf-8"), spec
    finally:
        server.kill()
        server.wait()


def _survives(directory: Path, certs: Path) -> bool:
    """Whether the server still answers after one call of a method whose name is no text."""
    with _server(directory, certs) as (_, address, _):
        RawConnection(address, certs / "clients" / "evil").open([b"/\xff\xfe"], EMPTY_MESSAGE)
        time.sleep(1)
        transport = GrpcTransport(address, 3, load_credentials(certs / "clients" / "probe"))
        try:
            return bool(transport.status().run)
        except (ClientError, Unreachable):
            return False
        finally:
            transport.close()


def _run(directory: Path, certs: Path, calls: int) -> tuple[str, dict[str, Any]]:
    log = directory / "server.log"
    with _server(directory, certs) as (server, address, spec):
        before = memory_mb(server.pid)["resident_mb"]
        evil = RawCalls(address, certs / "clients" / "evil")
        begin = time.monotonic()
        for path, message in KINDS.items():
            evil.open(path, calls // len(KINDS), message)
        held = evil.settle(20)
        opening = time.monotonic() - begin
        end = threading.Event()
        again = threading.Thread(target=evil.keep, args=(list(KINDS)[-1], calls, end))
        again.start()
        with _Probe(address, certs / "clients" / "probe") as probe:
            digest = _honest_run(address, directory, spec, certs)
            time.sleep(3)
        end.set()
        again.join()
        memory = memory_mb(server.pid)["peak_mb"] - before
        told = len(log.read_bytes())
        server.terminate()
        code = server.wait(60)
        last = log.read_bytes()[told:]
        evil.close()
    return digest, {
        "calls_begun": sum(one.opened for one in evil.connections),
        "calls_the_attacker_holds": held,
        "seconds_to_open_them": round(opening, 1),
        "other_clients_calls": probe.calls,
        "other_clients_calls_refused": probe.refused,
        "slowest_call_of_others_seconds": round(probe.slowest, 2),
        "run_ends_beside_the_attack": bool(digest),
        "memory_growth_mb": round(memory),
        "tracebacks_before_shutdown": log.read_bytes()[:told].count(b"Traceback"),
        "tracebacks_at_shutdown": last.count(b"Traceback"),
        "server_ends_with": code,
    }


def _honest_run(address: str, directory: Path, spec: Spec, certs: Path) -> str:
    """Run the honest clients; return the digest they end with, "" if they do not in time."""
    digests: list[str] = []

    def run(name: str) -> None:
        proof = load_credentials(certs / "clients" / name)
        transport = GrpcTransport(address, SECONDS, proof)
        with suppress(ClientError, Unreachable):
            session = Session(
                profile(name, EXAMPLES),
                transport,
                lambda plan, manifest, step: RandomWalk(directory, spec, name),
                lambda run: ClientState(directory / f"state-{name}", run),
            )
            digests.append(session.run().digest.hex())
        transport.close()

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in HONEST]
    for thread in threads:
        thread.start()
    until = time.monotonic() + SECONDS + 10
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    assert len(set(digests)) <= 1, digests
    return digests[0] if len(digests) == len(HONEST) else ""


class _Probe:
    """Asks for the status again and again, as another enrolled client."""

    def __init__(self, address: str, proof: Path) -> None:
        self._transport = GrpcTransport(address, 60, load_credentials(proof))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.calls = self.refused = 0
        self.slowest = 0.0

    def __enter__(self) -> _Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._transport.close()

    def _ask(self) -> None:
        while not self._end.wait(0.1):
            begin = time.monotonic()
            self.calls += 1
            try:
                self._transport._stub.GetStatus(pb.StatusRequest(), timeout=30)
            except grpc.RpcError:
                self.refused += 1
            self.slowest = max(self.slowest, time.monotonic() - begin)
